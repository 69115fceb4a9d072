"""The table of a run."""

import json
from pathlib import Path

import pytest
from report_support import write_run

from efficient_rollout.__main__ import main
from efficient_rollout.metrics import names
from efficient_rollout.summary import render_table
from efficient_rollout.training_runs.comparison import reward_verdict, speed_verdicts
from efficient_rollout.training_runs.run import REWARD_MEAN, read_run, read_steps

STEP = {
    "step": 3,
    "critic/score/mean": 0.5,
    "response_length/mean": 70.25,
    "response_length/max": 201,
    names.ROLLOUT_SECONDS: 4.125,
    names.TOKENS_PER_SECOND: 1234.4,
    names.MEAN_ACCEPTED_LENGTH: 3.5,
    names.SPECULATIVE_TICK_SHARE: 0.25,
    names.REQUANTIZE_SECONDS: 0.0625,
    names.WEIGHT_SYNC_SECONDS: 0.75,
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_row_shows_every_number_in_its_column():
    *_, row = render_table([STEP]).splitlines()
    assert row.split() == ["3", "0.500", "70.2", "201", "4.12", "1234", "3.50", "25%", "0.062", "0.750"]


def test_a_number_that_was_not_reported_is_a_dash():
    *_, row = render_table([{"step": 1, "critic/score/mean": 0.5}]).splitlines()
    assert row.split() == ["1", "0.500", *["-"] * 8]


def test_columns_line_up():
    lines = render_table([STEP, STEP | {"step": 10, "response_length/max": 12345}]).splitlines()
    assert len({len(line) for line in lines[2:]}) == 1


def test_openrlhfs_steps_have_the_same_columns(tmp_path):
    theirs = {
        "step": 3,
        "rollout/reward_mean": 0.5,
        "rollout/response_length_mean": 70.25,
        "timing/step_total": 2.5,
        names.PROBABILITY_DIFFERENCE: 1e-6,
    }
    evaluation = {"step": 3, "is_validation": True, "eval_default_pass1": 0.5}
    (step,) = read_steps(write(tmp_path / "metrics.jsonl", theirs, evaluation))
    *_, row = render_table([step]).splitlines()
    assert row.split() == ["3", "0.500", "70.2", *["-"] * 7]
    assert step["timing_s/step"] == 2.5
    assert step["training/rollout_probs_diff_mean"] == 1e-6


def test_a_record_of_validation_alone_is_no_step(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {"step": 0, "is_validation": True, "val-core/acc": 0.4}, STEP)
    assert [step["step"] for step in read_steps(path)] == [3]


def test_command_prints_the_table_and_where_the_rest_is(tmp_path, capsys):
    write(tmp_path / "metrics.jsonl", STEP)
    (tmp_path / "train.log").write_text("")
    assert main(["summary", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert render_table([STEP]) in told
    assert str(tmp_path / "metrics.jsonl") in told
    assert str(tmp_path / "train.log") in told
    assert "config.yaml" not in told


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "does not exist"),
        ("", "no training step"),
        ('{"step": 0, "is_validation": true, "val-core/acc": 1}\n', "no training step"),
        ('{"step": 1}\n{"st\n', "line 2: not JSON"),
        ('{"step": "1"}\n', "line 1: not the record of a step"),
        ("[1]\n", "line 1: not the record of a step"),
    ],
)
def test_bad_file_is_one_clear_error(text, named, tmp_path, capsys):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert main(["summary", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err


def run_of(directory: Path, *, tokens: int, rollout_s: float, step_s: float, num_steps: int = 3) -> Path:
    """A run whose first step is ten times as slow as the others."""
    directory.mkdir()
    records = [
        {
            "step": number,
            REWARD_MEAN: 0.5,
            names.GENERATED_TOKENS: tokens,
            names.ENGINE_TICKS: 20,
            names.ROLLOUT_SECONDS: rollout_s * (10 if number == 1 else 1),
            "timing_s/update_actor": step_s - rollout_s,
            "timing_s/step": step_s * (10 if number == 1 else 1),
        }
        for number in range(1, num_steps + 1)
    ]
    write(directory / "metrics.jsonl", *records)
    return directory


def printed(capsys: pytest.CaptureFixture[str], *directories: Path) -> list[str]:
    own, baseline = map(str, directories)
    assert main(["summary", own, "--against", baseline]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_is_compared_with_its_baseline_in_the_steps_both_have_but_the_first(tmp_path, capsys):
    baseline = run_of(tmp_path / "plain", tokens=100, rollout_s=4.0, step_s=8.0)
    ours = run_of(tmp_path / "ours", tokens=150, rollout_s=2.0, step_s=6.0, num_steps=9)
    told = printed(capsys, ours, baseline)
    start = told.index(f"against {baseline}, means of the steps that both have, without the first:")
    assert [line.split() for line in told[start + 2 : start + 7]] == [
        ["Tokens/engine", "tick", "7.50", "5.00", "1.50", "2"],
        ["Generated", "tokens/s", "75.00", "25.00", "3.00", "2"],
        ["Rollout", "seconds", "2.00", "4.00", "2.00", "2"],
        ["Step", "seconds", "6.00", "8.00", "1.33", "2"],
        ["Training", "seconds", "4.00", "4.00", "1.00", "2"],
    ]
    assert told[start + 7].startswith("Rollouts: cannot tell yet, 3.00 times as fast in 2 shared steps")


def test_the_same_step_of_both_runs_asks_the_same_questions(tmp_path, capsys):
    baseline = run_of(tmp_path / "plain", tokens=100, rollout_s=4.0, step_s=8.0, num_steps=2)
    ours = run_of(tmp_path / "ours", tokens=100, rollout_s=4.0, step_s=8.0)
    steps = [json.loads(line) for line in (baseline / "metrics.jsonl").read_text().splitlines()]
    write(baseline / "metrics.jsonl", *({**step, REWARD_MEAN: 0.25} for step in steps))
    heading, *rows = printed(capsys, ours, baseline)[:6]
    assert "do not compare with another step's" in heading
    assert [row.split()[:3] for row in rows[2:5]] == [
        ["1", "0.500", "0.250"],
        ["2", "0.500", "0.250"],
        ["3", "0.500", "-"],
    ]


def test_the_terminal_says_what_the_page_says(tmp_path, capsys):
    pytest.importorskip("yaml")
    runs = [write_run(tmp_path / "own", num_steps=5), write_run(tmp_path / "plain", num_steps=5, speed=400.0, seed=1)]
    own, plain = map(read_run, runs)
    told = printed(capsys, *runs)
    verdicts = [*speed_verdicts(own, plain), f"Rewards: {reward_verdict(own, plain)}"]
    assert [verdict for verdict in verdicts if verdict not in told] == []
    assert verdicts[0].startswith("Rollouts: cannot tell yet")


def test_runs_that_share_no_step_are_no_comparison(tmp_path, capsys):
    baseline = run_of(tmp_path / "plain", tokens=100, rollout_s=4.0, step_s=8.0, num_steps=1)
    ours = run_of(tmp_path / "ours", tokens=100, rollout_s=4.0, step_s=8.0)
    assert "Cannot tell: the runs share no step after the first" in "\n".join(printed(capsys, ours, baseline))


def test_another_recipe_is_no_baseline(tmp_path, capsys):
    pytest.importorskip("yaml")
    ours, other = write_run(tmp_path / "own"), write_run(tmp_path / "other", algorithm={"adv_estimator": "gae"})
    assert main(["summary", str(ours), "--against", str(other)]) == 2
    assert "algorithm.adv_estimator" in capsys.readouterr().err


def test_the_first_and_the_last_validation_stand_beside_the_baselines(tmp_path, capsys):
    runs = []
    for name, last in (("plain", 0.75), ("ours", 0.7)):
        directory = run_of(tmp_path / name, tokens=100, rollout_s=4.0, step_s=8.0)
        steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        validated = [
            {"step": step, "is_validation": True, "val-core/sums/acc/mean@1": acc}
            for step, acc in ((0, 0.5), (2, 0.6), (3, last))
        ]
        write(directory / "metrics.jsonl", validated[0], *steps, *validated[1:])
        runs.append(str(directory))
    plain, ours = runs
    told = printed(capsys, Path(ours), Path(plain))
    start = told.index("validation, the same questions each time:")
    measured = [" ".join(line.split()) for line in told[start + 1 : start + 3]]
    assert measured == [
        "this run sums/acc/mean@1: 0.500 at step 0, 0.700 at step 3",
        "baseline sums/acc/mean@1: 0.500 at step 0, 0.750 at step 3",
    ]


def test_a_run_that_validated_once_has_nothing_to_set_beside(tmp_path, capsys):
    directory = run_of(tmp_path / "run", tokens=100, rollout_s=4.0, step_s=8.0)
    write(directory / "metrics.jsonl", {"step": 1, names.ROLLOUT_SECONDS: 1.0, "val-core/sums/acc/mean@1": 0.5})
    assert main(["summary", str(directory)]) == 0
    assert "validation" not in capsys.readouterr().out
