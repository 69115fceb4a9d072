"""Checkpoints appear whole or not at all, and bad directories are told."""

import errno

import pytest

from efficient_rollout.errors import InputFileError
from efficient_rollout.tasks.store import filled_at_once


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "policy"
    for _ in range(2):
        with filled_at_once(target) as folder:
            assert not target.exists() or not list(target.iterdir())
            (folder / "weights").write_text("whole")
        assert (target / "weights").read_text() == "whole"
        (target / "weights").unlink()  # an empty one is filled too
    assert [path.name for path in target.parent.iterdir()] == ["policy"]


def fill(target, fault=None):
    with filled_at_once(target) as folder:
        (folder / "weights").write_text("half")
        if fault is not None:
            raise fault


def test_what_was_interrupted_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "policy", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(InputFileError, match=r"cannot write .*No space left.*XDG_CACHE_HOME"):
        fill(tmp_path / "policy", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("years")
    with pytest.raises(InputFileError, match="out exists and holds something else; remove it"):
        fill(tmp_path / "out")
    with pytest.raises(InputFileError, match=r"cannot write .*choose a writable directory"):
        fill(tmp_path / "out" / "thesis" / "policy")
    assert (tmp_path / "out" / "thesis").read_text() == "years"
