"""What is made once: reused, copied, made whole or not at all, and clear about bad directories."""

import pytest

from efficient_rollout.errors import InputFileError
from efficient_rollout.tasks.store import ensure_stored


class _Maker:
    """Fills directories, and counts how often."""

    def __init__(self):
        self.num_runs = 0
        self.breaks_off = False

    def __call__(self, directory):
        assert list(directory.iterdir()) == []
        self.num_runs += 1
        (directory / "weights").write_text("half")
        if self.breaks_off:
            raise KeyboardInterrupt
        (directory / "card").write_text("done")


@pytest.fixture
def make():
    return _Maker()


def stored(place, make, out=None, needed_bytes=1):
    return ensure_stored(
        place / "cache" / "it",
        out=out,
        needed_bytes=needed_bytes,
        is_finished=lambda directory: (directory / "card").is_file(),
        make=make,
    )


def test_it_is_made_once_and_copied(make, tmp_path):
    assert stored(tmp_path, make) == stored(tmp_path, make) == tmp_path / "cache" / "it"
    out = tmp_path / "out"
    out.mkdir()
    assert stored(tmp_path, make, out=out) == stored(tmp_path, make, out=out) == out
    assert (out / "card").read_text() == "done"
    assert make.num_runs == 1


def test_what_was_interrupted_is_made_anew(make, tmp_path):
    make.breaks_off = True
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, make)
    make.breaks_off = False
    assert (stored(tmp_path, make) / "card").is_file()
    assert make.num_runs == 2


@pytest.mark.parametrize("is_of_out", [True, False], ids=["out", "cache"])
def test_a_full_disk_is_told_before_anything_is_made(is_of_out, make, tmp_path):
    with pytest.raises(InputFileError, match="MiB free, the policy needs"):
        stored(tmp_path, make, out=tmp_path / "out" if is_of_out else None, needed_bytes=2**60)
    assert make.num_runs == 0


def test_what_lies_at_out_stays(make, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("")
    with pytest.raises(InputFileError, match="out exists and is not the it policy; remove it"):
        stored(tmp_path, make, out=tmp_path / "out")
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputFileError, match=r"cannot write .*XDG_CACHE_HOME"):
        stored(tmp_path, make)
    assert make.num_runs == 0
