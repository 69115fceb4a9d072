"""`efficient-rollout report`: one file, or one clear message."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from report_support import write_run

pytest.importorskip("plotly")

from efficient_rollout.__main__ import main
from efficient_rollout.dashboards import cli


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_the_page_is_one_file_in_the_run_directory_and_its_path_is_printed(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    assert report(run) == 0
    assert {path.name for path in run.iterdir()} - before == {"report.html"}
    assert capsys.readouterr().out == f"report: {run.resolve() / 'report.html'}\n"
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_another_file_a_baseline_and_the_browser(tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(cli.webbrowser, "open", lambda url: opened.append(url) or True)
    own, plain = write_run(tmp_path / "own"), write_run(tmp_path / "plain", speed=1000.0, drafting=False, seed=1)
    out = tmp_path / "new" / "page.html"
    assert report(own, "--baseline", plain, "--out", out, "--open") == 0
    assert opened == [out.resolve().as_uri()]
    assert "Rollouts are faster: 1.49 times as fast" in out.read_text()
    assert not (own / "report.html").exists()


def metrics_text(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (None, "is no directory"),
        ({}, "metrics.jsonl does not exist"),
        ({"metrics.jsonl": ""}, "no training step"),
        ({"metrics.jsonl": '{"step": 1, "critic/sc'}, "no training step"),
        ({"metrics.jsonl": 'half\n{"step": 1, "critic/score/mean": 1}\n'}, "line 1: not JSON"),
        ({"metrics.jsonl": metrics_text({"epoch": 1, "loss": 2.0})}, "line 1: not the record of a step"),
        ({"metrics.jsonl": metrics_text({"step": "<b>1</b>", "critic/score/mean": 2.0})}, "not the record of a step"),
        ({"metrics.jsonl": b"\x89PNG\xff\xfe"}, "it is not text"),
        ({"metrics.jsonl": metrics_text({"step": 1, "critic/score/mean": 1}), "config.yaml": "a: [1"}, "not YAML"),
        ({"metrics.jsonl": metrics_text({"step": 1, "critic/score/mean": 1}), "config.yaml": "a"}, "holds no keys"),
        ({"metrics.jsonl": metrics_text({"step": 1, "critic/score/mean": 1}), "provenance.json": "{"}, "not JSON"),
    ],
)
@pytest.mark.parametrize("role", ["run", "baseline"])
def test_a_directory_that_holds_no_run_is_one_clear_error(files, named, role, tmp_path, capsys):
    bad = tmp_path / "bad"
    if files is not None:
        bad.mkdir()
        for name, content in files.items():
            (bad / name).write_bytes(content.encode() if isinstance(content, str) else content)
    good = write_run(tmp_path / "good", num_steps=2)
    out = tmp_path / "page.html"
    arguments = [bad] if role == "run" else [good, "--baseline", bad]
    assert report(*arguments, "--out", out) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert str(bad) in printed.err
    assert (printed.err.count("\n"), printed.out, out.exists()) == (1, "", False)


def test_a_baseline_of_another_recipe_is_refused_with_the_keys_that_differ(tmp_path, capsys):
    own = write_run(tmp_path / "own")
    other = write_run(tmp_path / "other", algorithm={"adv_estimator": "gae"})
    assert report(own, "--baseline", other) == 2
    printed = capsys.readouterr().err
    assert "algorithm.adv_estimator (grpo here, gae in the baseline)" in printed
    assert "train_batch_size" not in printed
    assert not (own / "report.html").exists()


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path, capsys):
    run = write_run(tmp_path / "run", num_steps=2)
    assert report(run, "--out", run / "metrics.jsonl" / "page.html") == 2
    assert "choose another file with --out" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, capsys):
    for module in ("plotly", "yaml"):
        monkeypatch.setitem(sys.modules, module, None)
    assert report(write_run(tmp_path / "run", num_steps=2)) == 2
    assert "the report needs plotly, pyyaml: pip install plotly pyyaml" in capsys.readouterr().err


def append_step(run: Path, step: int) -> None:
    """One more step, in two writes, as a reader may find it."""
    line = (run / "metrics.jsonl").read_text().splitlines()[-1]
    text = json.dumps(json.loads(line) | {"step": step}) + "\n"
    with (run / "metrics.jsonl").open("a") as file:
        for part in (text[:40], text[40:]):
            file.write(part)
            file.flush()


def wait_for(path: Path, text: str, *, times: int = 1, seconds: float = 30.0) -> str:
    """What a file holds, once it has this text in it, so many times."""
    deadline = time.monotonic() + seconds
    while not path.is_file() or (found := path.read_text()).count(text) < times:
        assert time.monotonic() < deadline, f"{text!r} is not in {path}"
        time.sleep(0.05)
    return found


@pytest.fixture
def watcher(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `report --watch` as users do; none of them outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "efficient_rollout", "report", *map(str, arguments), "--watch"]
        with (tmp_path / "err").open("w") as err:
            # A shell's background jobs, these tests perhaps, have Ctrl-C ignored.
            listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            started.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, preexec_fn=listening)
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_watched_run_gets_its_page_anew_after_each_step(tmp_path, watcher):
    run = write_run(tmp_path / "run", num_steps=3)
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    page, err = run / "report.html", tmp_path / "err"
    process = watcher(run)
    # Before the first step there is nothing to draw.
    wait_for(err, "metrics.jsonl does not exist")
    (run / "metrics.jsonl").write_text(lines)
    assert 'id="reload"' in wait_for(page, "3 steps, 1 to 3")
    append_step(run, 4)
    wait_for(page, "4 steps, 1 to 4")
    # As where a job is started anew: its earlier file is set aside, and the next one begins.
    (run / "metrics.jsonl").rename(run / "metrics.1.jsonl")
    wait_for(err, "metrics.jsonl does not exist", times=2)
    assert "4 steps" in page.read_text(), "a page that was written stays"
    (run / "metrics.jsonl").write_text(lines.splitlines(keepends=True)[0])
    wait_for(page, "1 step, number 1")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.count("\n")) == (0, 1)
    assert err.read_text().count("\n") == 2, "each fault is told once"
    assert not list(run.glob(".report.html*"))


def test_a_full_disk_is_told_once_and_a_page_is_written_when_there_is_room(tmp_path, watcher):
    run = write_run(tmp_path / "run", num_steps=2)
    process = watcher(run, "--out", tmp_path / "page.html")
    wait_for(tmp_path / "page.html", "2 steps, 1 to 2")
    # No file of the process may be longer: the kernel refuses the page, as it does where the disk is full.
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    append_step(run, 3)
    told = wait_for(tmp_path / "err", "cannot write")
    time.sleep(4.5)
    assert (tmp_path / "err").read_text() == told
    assert told.count("\n") == 1
    assert wait_for(tmp_path / "page.html", "2 steps, 1 to 2").rstrip().endswith("</html>"), "whole, and as it was"
    assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_for(tmp_path / "page.html", "3 steps, 1 to 3")


def test_a_directory_that_is_none_is_not_watched(tmp_path, capsys):
    assert report(tmp_path / "none", "--watch") == 2
    assert "is no directory" in capsys.readouterr().err
