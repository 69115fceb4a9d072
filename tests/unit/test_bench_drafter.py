"""What `bench drafter` makes of its arguments and of its runs; no engine."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efficient_rollout.bench import calibrate
from efficient_rollout.bench.acceptance import acceptance, acceptance_table, check_checkpoints, unfinished
from efficient_rollout.bench.cli import add_bench_command
from efficient_rollout.bench.drafter import PLAIN_COMPILED, PLAIN_EAGER, DrafterPlan, Measured, Run, plain_passes
from efficient_rollout.bench.drafter_cli import drafters_of, plan_of
from efficient_rollout.bench.drafter_report import baseline_of, summarize, table
from efficient_rollout.config import Settings
from efficient_rollout.errors import ConfigError
from efficient_rollout.metrics.rollout_stats import RolloutStats

CONFIG = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "eos_token_id": 2,
}
NUM_WEIGHTS = 8 * 4 * (2 * 2 + 2 * 2) + 3 * 8 * 16 + 8 * 10


@pytest.fixture
def policy(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def plain(arm: str, step: float, number: int, *, batch: int = 1) -> Run:
    # As many tokens as ticks: a plain engine emits one each.
    return Run(
        arm=arm, batch=batch, num_draft_tokens=0, round=number, tick_seconds=step, decode_seconds=100 * step,
        decoded_tokens=100 * batch, num_ticks=100,
    )  # fmt: skip


def drafting(k: int, draft: float, verify: float, accepted: float, number: int, *, batch: int = 1) -> Run:
    tick = k * draft + verify
    return Run(
        arm="int8", batch=batch, num_draft_tokens=k, round=number, tick_seconds=tick, draft_step_seconds=draft,
        verify_seconds=verify, decode_seconds=100 / accepted * tick, decoded_tokens=100 * batch,
        mean_accepted_length=accepted, num_ticks=round(100 / accepted),
        part_seconds={"target_forward": 1.0 + number},
    )  # fmt: skip


def plan(model: Path, **changes: Any) -> DrafterPlan:
    values: dict[str, Any] = {
        "model": str(model),
        "drafters": {"int8": Settings()},
        "batches": (1,),
        "lengths": (1, 4),
        "context_tokens": 64,
        "response_tokens": 32,
        "prompts": [(3,) * 48] * 2,
        "eos_token_ids": (),
        "rounds": 3,
        "temperature": 1.0,
        "dtype": "float32",
        "is_compiled": False,
        "plain_arms": (PLAIN_EAGER, PLAIN_COMPILED),
    }
    return DrafterPlan(**{**values, **changes})


def measured() -> Measured:
    """Three rounds; the machine was ten times slower in the second one. Compiled plain decoding is the faster one."""
    found = Measured(memory={"int8": {"drafter_bytes": NUM_WEIGHTS, "num_packed_weights": NUM_WEIGHTS}})
    found.switches["int8", 1] = [3.96 * slowness for slowness in (1.0, 10.0, 1.0)]
    for number, slowness in enumerate((1.0, 10.0, 1.0)):
        found.runs += [
            plain(PLAIN_EAGER, 2.0 * slowness, number),
            plain(PLAIN_COMPILED, 1.0 * slowness, number),
            plain("int8", 1.1 * slowness, number),
            drafting(1, 0.4 * slowness, 1.2 * slowness, 1.25, number),
            drafting(4, 0.3 * slowness, 1.3 * slowness, 5.0, number),
        ]
        found.syncs.append(
            {
                "arm": "int8",
                "weight_sync_seconds": 5.0 * slowness,
                "requantize_seconds": 1.0 * slowness,
                "plain_reload_seconds": 2.0 * slowness,
            }
        )
    return found


def test_ratios_are_taken_within_a_round_against_the_faster_plain_engine(policy):
    summary = summarize(plan(policy), measured())
    assert summary["baseline"] == {"1": PLAIN_COMPILED}
    by_k = {row["draft_tokens"]: row for row in summary["drafting"]}
    assert set(by_k) == {0, 1, 4}
    # The slow round changes seconds, and no ratio.
    for name, expected in (("draft_over_plain", 0.3), ("verify_over_plain", 1.3), ("speedup", 5.0 / 2.5)):
        assert by_k[4][name] == pytest.approx({"median": expected, "min": expected, "max": expected}), name
    assert by_k[4]["draft_step_seconds"]["max"] > 5 * by_k[4]["draft_step_seconds"]["median"]
    assert by_k[0]["tick_over_plain"]["max"] == pytest.approx(1.1)
    assert by_k[1]["speedup"]["median"] == pytest.approx(1.25 / 1.6)
    json.dumps(summary)


def test_every_number_of_a_row_is_the_median_of_its_rounds(policy):
    summary = summarize(plan(policy), measured())
    eager, compiled = summary["plain"]
    assert (eager["step_seconds"]["median"], eager["tokens_per_second"]["median"]) == (2.0, 0.5)
    assert (compiled["step_seconds"]["median"], compiled["tokens_per_second"]["median"]) == (1.0, 1.0)
    row = next(row for row in summary["drafting"] if row["draft_tokens"] == 4)
    seconds = {"tick_seconds": 2.5, "draft_step_seconds": 0.3, "verify_seconds": 1.3}
    assert {name: row[name]["median"] for name in seconds} == pytest.approx(seconds)
    assert row["tokens_per_second"]["median"] == pytest.approx(5.0 / 2.5)
    assert row["mean_accepted_length"]["median"] == 5.0
    assert row["num_ticks"] == 3 * 20
    assert row["part_seconds"] == {"target_forward": 2.0}


def test_the_eager_plain_engine_is_the_baseline_where_it_is_faster():
    runs = [plain(PLAIN_EAGER, 1.0, 0), plain(PLAIN_COMPILED, 1.5, 0)]
    runs += [plain(PLAIN_EAGER, 4.0, 0, batch=8), plain(PLAIN_COMPILED, 3.0, 0, batch=8)]
    assert [baseline_of(runs, (PLAIN_EAGER, PLAIN_COMPILED), batch) for batch in (1, 8)] == [
        PLAIN_EAGER,
        PLAIN_COMPILED,
    ]


def test_the_headline_names_r_at_five_verified_positions_and_the_best_k(policy):
    (row,) = summarize(plan(policy), measured())["headline"]
    assert row["draft_tokens"] == 4
    assert row["draft_over_plain"]["median"] == pytest.approx(0.3)
    assert row["verify_over_plain"]["median"] == pytest.approx(1.3)
    assert row["best_draft_tokens"] == 4
    assert row["best_speedup"]["median"] == pytest.approx(2.0)


def test_where_every_k_loses_the_best_is_none(policy):
    lost = measured()
    lost.runs = [
        replace(run, decode_seconds=run.decode_seconds * 9) if run.num_draft_tokens else run for run in lost.runs
    ]
    (row,) = summarize(plan(policy), lost)["headline"]
    assert row["best_draft_tokens"] == 0


def test_switching_is_compared_with_the_same_ticks_in_steady_runs(policy):
    summary = summarize(plan(policy), measured())
    (row,) = summary["switching"]
    assert row["draft_tokens"] == 4
    assert row["pair_over_steady_pair"]["max"] == pytest.approx(1.1)
    assert "int8: 4, 0" in table(summary)


@pytest.mark.parametrize(("lengths", "shown"), [((1, 4, 8), 4), ((1, 2, 8), 2), ((3, 5), 3), ((7,), 7)])
def test_the_length_that_is_shown_is_four_or_the_nearest(policy, lengths, shown):
    assert plan(policy, lengths=lengths).shown_length == shown


def test_requantizing_is_compared_with_the_load_it_follows(policy):
    sync = summarize(plan(policy), measured())["weight_sync"]["int8"]
    assert sync["weight_load_seconds"]["median"] == 4.0
    assert sync["requantize_over_load"]["median"] == 0.25
    assert sync["requantize_over_plain_reload"]["median"] == 0.5


def test_the_byte_ratio_counts_what_a_draft_step_reads(policy):
    memory = summarize(plan(policy), measured())["memory"]["int8"]
    assert memory["policy_read_bytes"] == 4 * NUM_WEIGHTS
    assert memory["byte_ratio"] == memory["memory_ratio"] == 0.25
    head_left_out = measured()
    num_packed = NUM_WEIGHTS - 80
    head_left_out.memory["int8"] = {"drafter_bytes": num_packed, "num_packed_weights": num_packed}
    memory = summarize(plan(policy), head_left_out)["memory"]["int8"]
    assert memory["byte_ratio"] == pytest.approx((num_packed + 4 * 80) / (4 * NUM_WEIGHTS))
    assert memory["memory_ratio"] < 0.25
    halves = summarize(plan(policy, dtype="bfloat16"), measured())["memory"]["int8"]
    assert halves["policy_read_bytes"] == 2 * NUM_WEIGHTS


def blocks(text: str) -> list[list[list[str]]]:
    """The tables of a text, their lines, and the cells of those."""
    return [[re.split(r"\s{2,}", line) for line in block.splitlines()] for block in text.split("\n\n")]


def test_the_table_shows_every_row_and_marks_those_that_lose(policy):
    plain_rows, drafting_rows, headline, _, _ = blocks(table(summarize(plan(policy), measured())))
    assert [row[0] for row in plain_rows[1:]] == ["plain eager", "plain compiled *"]
    assert plain_rows[1][2:] == ["2000.00 [2000.00, 20000.00]", "0.5"]
    nothing_drafted, one, four = drafting_rows[1:]
    assert nothing_drafted[2:] == ["0", "-", "1100.00 [1100.00, 11000.00]", "-", "1.100 [1.100, 1.100]", "-",
                                   "0.909 [0.909, 0.909]", "slower"]  # fmt: skip
    assert one[2:] == ["1", "400.00 [400.00, 4000.00]", "1200.00 [1200.00, 12000.00]", "0.400 [0.400, 0.400]",
                       "1.200 [1.200, 1.200]", "1.25", "0.781 [0.781, 0.781]", "slower"]  # fmt: skip
    assert four[7:] == ["5.00", "2.000 [2.000, 2.000]"], "the only one that wins"
    assert headline[1] == ["int8", "1", "4", "0.300 [0.300, 0.300]", "0.250", "1.300 [1.300, 1.300]", "4",
                           "2.000 [2.000, 2.000]", "0.250"]  # fmt: skip


def test_drafters_are_told_apart(policy):
    found, other = measured(), measured()
    found.runs += [
        replace(run, arm="other", tick_seconds=9 * run.tick_seconds, decode_seconds=9 * run.decode_seconds)
        for run in other.runs
        if run.arm == "int8"
    ]
    found.syncs += [
        run | {"arm": "other", "requantize_seconds": 0.5 * run["requantize_seconds"]} for run in other.syncs
    ]
    found.memory["other"] = found.memory["int8"]
    summary = summarize(plan(policy, drafters={"int8": Settings(), "other": Settings()}), found)
    assert [(row["drafter"], row["best_draft_tokens"]) for row in summary["headline"]] == [("int8", 4), ("other", 4)]
    assert summary["headline"][1]["best_speedup"]["median"] == pytest.approx(2.0 / 9)
    assert summary["weight_sync"]["int8"]["requantize_seconds"]["median"] == 1.0
    assert summary["weight_sync"]["other"]["requantize_seconds"]["median"] == 0.5


def test_a_plain_engines_ticks_are_the_pauses_between_its_answers():
    # Prefill, requests still arriving, then 0.1 s a tick with one stall.
    answers = [1.0, 1.5, 1.6, 1.9, 2.0, 2.1, 5.1, 5.2]
    assert plain_passes(answers)["tick_seconds"] == pytest.approx(0.1)


def test_acceptance_tells_reached_positions_from_all():
    stats = RolloutStats(
        num_verify_passes=4,
        num_draft_tokens=12,
        num_accepted_tokens=5,
        drafted_per_position=[4, 4, 4],
        accepted_per_position=[3, 1, 1],
    )
    rates = acceptance(stats)
    assert rates["accepted_share"] == [0.75, 0.25, 0.25]
    assert rates["acceptance_rate"] == [pytest.approx(3 / 4), pytest.approx(1 / 3), 1.0]
    assert rates["mean_accepted_length"] == 1.0 + 5 / 4
    assert acceptance(RolloutStats())["mean_accepted_length"] is None


def test_only_responses_that_go_on_reach_the_next_segment():
    texts = [(5,), (6,), (7,)]
    continued = unfinished(texts, [[8, 8, 8], [8, 2], [8, 8, 2]], 3, (2,))
    assert continued == [(5, 8, 8, 8)]


def test_the_acceptance_table_shows_segments_without_drafts_too():
    row = {"checkpoint": "policy", "drafter": "int8", "temperature": 0.0, "from_token": 256, "to_token": 384}
    stats = RolloutStats(
        num_verify_passes=1,
        num_draft_tokens=3,
        num_accepted_tokens=1,
        drafted_per_position=[1, 1, 1],
        accepted_per_position=[1, 0, 0],
    )
    rows = [{**row, "num_responses": 0, **acceptance(RolloutStats())}, {**row, "num_responses": 7, **acceptance(stats)}]
    ((_, empty, drafted),) = blocks(acceptance_table(rows))
    assert empty == ["policy", "int8", "0", "256-384", "0", "0", "-", "-"]
    assert drafted[4:] == ["7", "1", "2.00", "1.000 0.000 -"]


def test_an_arm_can_carry_settings_of_the_drafter():
    drafters = drafters_of("int8,int4:group_size=128:quantize_output_head=false", 8)
    assert list(drafters) == ["int8", "int4:group_size=128:quantize_output_head=false"]
    int4 = drafters["int4:group_size=128:quantize_output_head=false"].drafter
    assert (int4.scheme, int4.group_size, int4.quantize_output_head) == ("int4", 128, False)
    assert drafters["int8"].controller.max_draft_tokens == 8


@pytest.mark.parametrize("text", ["", "int9", "int4:group_size=7", "int4:128", "int8,int8", "int8:colour=red"])
def test_a_wrong_arm_is_refused(text):
    with pytest.raises(ConfigError):
        drafters_of(text, 4)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_command(parser.add_subparsers())
    return parser.parse_args(["bench", "drafter", *arguments])


def test_auto_becomes_a_dtype_before_anything_is_written(policy, monkeypatch):
    pytest.importorskip("efficient_rollout.measuring.offline")
    torch = pytest.importorskip("torch")
    for capability, dtype in (("AVX2", "float32"), ("DEFAULT", "float32"), ("AVX512", "bfloat16")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        args = parsed("--model", str(policy))
        assert args.dtype == "auto"
        made, no_acceptance = plan_of(args)
        assert (args.dtype, made.dtype) == (dtype, dtype)
        assert no_acceptance is None
    asked = parsed("--model", str(policy), "--dtype", "bfloat16")
    calibrate.resolve_dtype(asked)
    assert asked.dtype == "bfloat16"


def test_random_prompts_already_have_the_length_of_the_context(policy):
    made, _ = plan_of(parsed("--model", str(policy), "--context", "256", "--dtype", "float32", "--batches", "1,4"))
    assert {len(prompt) for prompt in made.prompts} == {256 - 32}
    assert len(made.prompts) >= 4
    assert made.eos_token_ids == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "17"], "up to 16"),
        (["--lengths", "16"], "need 119"),
        (["--context", "32"], "must exceed half"),
        (["--rounds", "0"], "at least 1"),
        (["--acceptance"], "--task or --prompts"),
        (["--also-model", "after=x"], "--acceptance"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(policy, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(parsed("--model", str(policy), *arguments))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    for name, layers in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    check_checkpoints({"before": tmp_path / "a", "after": tmp_path / "b"})
    with pytest.raises(ConfigError, match="after is l2"):
        check_checkpoints({"before": tmp_path / "a", "after": tmp_path / "c"})
