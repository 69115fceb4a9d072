"""Files: whole or not at all, and an error that names the file and the way out."""

import json
import os
from pathlib import Path

import pytest

from efficient_rollout.errors import InputFileError, ProfileError
from efficient_rollout.files import read_json, write_json, written_whole


def fail_half_way(path: Path) -> None:
    with written_whole(path) as staged:
        staged.write_text("half")
        raise RuntimeError("half-way")


def test_a_written_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "folder" / "result.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way(path)
    assert json.loads(path.read_text()) == {"value": 1}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_file_appears_only_when_it_is_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "result.bin"
    with written_whole(path) as staged:
        staged.write_text("half")
        assert not path.exists()
        assert staged.name == path.name
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"x\.json.*make another"):
        read_json(path, what="the thing", remedy="make another")
    with pytest.raises(ProfileError):
        read_json(path, what="the profile", error=ProfileError)
