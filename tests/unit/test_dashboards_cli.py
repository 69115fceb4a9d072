"""`efficient-rollout report`: one file, or one clear message."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from report_support import write_run

pytest.importorskip("plotly")

from efficient_rollout.__main__ import main
from efficient_rollout.dashboards import cli


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_the_page_is_one_file_in_the_run_directory_and_its_path_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    assert report(run) == 0
    assert {path.name for path in run.iterdir()} - before == {"report.html"}
    assert capsys.readouterr().out == f"report: {run.resolve() / 'report.html'}\n"
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_another_file_a_baseline_and_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_directory_that_holds_no_run_is_one_clear_error(
    files: dict[str, str | bytes] | None, named: str, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_baseline_of_another_recipe_is_refused_with_the_keys_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_run(tmp_path / "own")
    other = write_run(tmp_path / "other", algorithm={"adv_estimator": "gae"})
    assert report(own, "--baseline", other) == 2
    printed = capsys.readouterr().err
    assert "algorithm.adv_estimator (grpo here, gae in the baseline)" in printed
    assert "train_batch_size" not in printed
    assert not (own / "report.html").exists()


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", num_steps=2)
    assert report(run, "--out", run / "metrics.jsonl" / "page.html") == 2
    assert "choose another file with --out" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("plotly", "yaml"):
        monkeypatch.setitem(sys.modules, module, None)
    assert report(write_run(tmp_path / "run", num_steps=2)) == 2
    assert "the report needs plotly, pyyaml: pip install plotly pyyaml" in capsys.readouterr().err
