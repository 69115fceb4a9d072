"""What the controller learns from ticks: acceptance, true seconds; and what the rules make of it."""

from pathlib import Path

import numpy as np
import pytest

from efficient_rollout.controller.acceptance import AcceptanceEstimator
from efficient_rollout.controller.batch_table import BatchTable
from efficient_rollout.controller.cost_model_rule import REASONS, CostModelRule
from efficient_rollout.controller.observation import SpeedupSums, TickObservation
from efficient_rollout.controller.published import Published
from efficient_rollout.controller.registry import RULES, RuleInputs, make_rule
from efficient_rollout.controller.rule import Rule
from efficient_rollout.controller.state import DecodeState
from efficient_rollout.cost_model.calibration import calibrate_from_table
from efficient_rollout.cost_model.correction import OnlineCorrection
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.cost_model.table import read_table
from efficient_rollout.errors import ConfigError

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def table() -> TickTable:
    return TickTable(calibrate_from_table(read_table(DATA / "sweep_a100_tp1_qwen257b.csv")).model, 11)


def state(batch: int, context: float = 1024.0, *, prefill: int = 0, waiting: int = 0, limit: int = 11) -> DecodeState:
    return DecodeState(num_running_requests=batch, num_waiting_requests=waiting, num_prefill_tokens=prefill,
                       mean_context_tokens=context, max_draft_tokens=limit)  # fmt: skip


def counts(rng: np.random.Generator, acceptance: float, requests: int, k: int) -> tuple[tuple[int, ...], ...]:
    accepted = np.minimum(rng.geometric(1.0 - acceptance, requests) - 1, k)
    reached = [int((accepted >= i).sum()) for i in range(k + 1)]
    return tuple(reached[:-1]), tuple(reached[1:])


def test_acceptance_is_recovered_per_position() -> None:
    estimator, rng = AcceptanceEstimator(4, prior_acceptance=0.5), np.random.default_rng(0)
    truth = (0.95, 0.9, 0.8, 0.6)
    for _ in range(500):
        attempts, accepted, reached = [], [], 8
        for probability in truth:
            attempts.append(reached)
            reached = int(rng.binomial(reached, probability))
            accepted.append(reached)
        estimator.observe(tuple(attempts), tuple(accepted))
    np.testing.assert_allclose(estimator.by_position(), truth, atol=0.04)
    assert estimator.standard_error() < 0.01


def test_a_collapse_of_acceptance_is_noticed_within_a_few_ticks() -> None:
    estimator, rng = AcceptanceEstimator(7), np.random.default_rng(1)
    for _ in range(300):
        estimator.observe(*counts(rng, 0.95, 8, 7))
    for _ in range(12):
        estimator.observe(*counts(rng, 0.0, 8, 7))
    assert estimator.expected_tokens()[7] < 1.6


def test_a_weight_sync_keeps_the_mean_and_widens_the_uncertainty() -> None:
    estimator, rng = AcceptanceEstimator(7), np.random.default_rng(2)
    for _ in range(50):
        estimator.observe(*counts(rng, 0.97, 8, 7))
    before, error = estimator.pooled(), estimator.standard_error()
    estimator.mark_stale()
    assert estimator.pooled() == pytest.approx(before, abs=0.02)
    assert estimator.standard_error() > 1.5 * error


def test_correction_finds_the_true_seconds_and_shrugs_off_stalls() -> None:
    correction, rng = OnlineCorrection(), np.random.default_rng(3)
    for i in range(200):
        seconds = 0.030 * float(np.exp(0.03 * rng.standard_normal()))
        correction.observe(4, 8, 0.010, seconds)
        if i % 40 == 39:
            for nonsense in (2.0, -5.0, float("nan"), 0.0, None):
                correction.observe(4, 8, 0.010, nonsense)
    assert np.exp(correction.log_factor(4, 8)) == pytest.approx(3.0, rel=0.03)
    assert np.exp(correction.log_factor(5, 8)) == pytest.approx(3.0, rel=0.1), "an untimed length borrows"


def test_what_one_batch_taught_fades_with_the_distance_of_another() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        assert correction.observe(7, 1, 1.0, 0.5)
    learned = [correction.log_factor(7, batch) / np.log(0.5) for batch in (1, 2, 4, 8, 16, 32)]
    assert learned[0] > 0.95
    assert learned[1] > 0.7, "the next octave is much alike"
    assert learned[5] < 0.4, "thirty sequences are not one"
    assert learned == sorted(learned, reverse=True)
    # Ticks of its own soon outweigh what neighbours say.
    for _ in range(20):
        correction.observe(7, 2, 1.0, 2.0)
    assert correction.log_factor(7, 2) > 0.6 * np.log(2.0)
    assert correction.log_factor(7, 1) == pytest.approx(np.log(0.5), abs=0.1)


def test_a_lasting_change_is_believed() -> None:
    correction = OnlineCorrection()
    for _ in range(200):
        correction.observe(0, 8, 0.010, 0.010)
    for _ in range(400):
        correction.observe(0, 8, 0.010, 0.100)
    assert np.exp(correction.log_factor(0, 8)) > 5.0


@pytest.mark.parametrize(("batch", "expected"), [(1, 7), (128, 0)])
def test_cost_model_drafts_in_small_batches_and_not_in_large_ones(table: TickTable, batch: int, expected: int) -> None:
    rule = make_rule("cost_model", RuleInputs(max_draft_tokens=7, table=table, prior_acceptance=0.99))
    choices = []
    for _ in range(40):
        decision = rule.decide(state(batch, limit=7))
        k = decision.num_draft_tokens
        assert decision.reason in REASONS
        seconds = float(table.by_length(batch, 1024.0)[k])
        rule.observe(TickObservation(num_draft_tokens=k, num_requests=batch, mean_context_tokens=1024.0,
                       attempts_per_position=(batch,) * k, accepted_per_position=(batch,) * k,
                       seconds=seconds))  # fmt: skip
        choices.append(k)
    assert np.median(choices) == expected


def test_cost_model_decodes_plainly_while_prompts_are_computed(table: TickTable) -> None:
    rule = make_rule("cost_model", RuleInputs(max_draft_tokens=7, table=table))
    assert rule.decide(state(1, prefill=500)).reason == "prefill"
    assert rule.decide(state(0)).reason == "idle"


@pytest.mark.parametrize("slowness", [1.0, 1.5])
def test_predicted_against_measured_speed_up(table: TickTable, slowness: float) -> None:
    rule = CostModelRule(table, 7)
    plain_s, tick_s = (float(table.by_length(2, 1024.0)[k]) for k in (0, 4))
    for _ in range(2):  # the first tick of a length is not learned from
        rule.observe(TickObservation(num_draft_tokens=4, num_requests=2, mean_context_tokens=1024.0, num_tokens=7,
                       seconds=slowness * tick_s))  # fmt: skip
    sums = rule.take_speedup()
    assert sums.predicted_plain_seconds == pytest.approx(expected_tokens(0.9, 4) * plain_s)
    assert sums.predicted_tick_seconds == pytest.approx(tick_s)
    assert sums.measured_plain_seconds == pytest.approx(7 / 2 * plain_s)
    assert sums.measured_tick_seconds == pytest.approx(slowness * tick_s)
    assert rule.take_speedup() == SpeedupSums(), "taken once"


def test_plain_and_prefill_ticks_say_nothing_of_the_speed_up(table: TickTable) -> None:
    rule = CostModelRule(table, 7)
    for k, prefill in ((0, False), (0, False), (4, True), (4, True)):
        rule.observe(TickObservation(num_draft_tokens=k, num_requests=2, mean_context_tokens=1024.0, num_tokens=8,
                       seconds=0.02, had_prefill=prefill))  # fmt: skip
    assert rule.take_speedup() == SpeedupSums()
    for name in set(RULES) - {"cost_model"}:
        assert make_rule(name, RuleInputs(max_draft_tokens=7, table=table)).take_speedup() is None


def test_prefill_ticks_do_not_teach_seconds(table: TickTable) -> None:
    rule = CostModelRule(table, 7)
    for _ in range(20):
        rule.observe(TickObservation(num_draft_tokens=0, num_requests=8, mean_context_tokens=1024.0, seconds=0.05,
                       had_prefill=True))  # fmt: skip
    assert rule.correction.version == 0


def test_a_decision_never_exceeds_the_state_or_the_policy(table: TickTable) -> None:
    for name in RULES:
        rule = make_rule(name, RuleInputs(max_draft_tokens=7, table=table, prior_acceptance=0.99))
        for _ in range(30):
            assert 0 <= rule.decide(state(2, limit=3)).num_draft_tokens <= 3


def test_the_published_switch_is_one_way_and_its_ladder_has_patience(table: TickTable) -> None:
    rule = Published(table, acceptance=0.98)
    assert rule.decide(state(128)).num_draft_tokens == 0
    assert rule.decide(state(4)).num_draft_tokens == 5
    assert rule.decide(state(128)).num_draft_tokens == 5, "stays on"
    lengths = []
    for accepted in (99, 99, 99, 99, 80, 99, 80, 80):
        rule.observe(TickObservation(num_draft_tokens=5, num_requests=1, mean_context_tokens=1.0,
                       attempts_per_position=(100,), accepted_per_position=(accepted,)))  # fmt: skip
        rule.mark_stale()
        lengths.append(rule.length)
    assert lengths == [5, 7, 7, 9, 9, 9, 9, 7]
    assert rule.decide(state(128)).num_draft_tokens == 0, "a new rollout starts switched off"


def test_the_registry_makes_every_policy_and_names_faults(table: TickTable) -> None:
    inputs = RuleInputs(max_draft_tokens=7, table=table)
    rules: dict[str, Rule] = {name: make_rule(name, inputs) for name in RULES}
    assert len(rules) == 6
    for rule in rules.values():
        rule.mark_stale()
    assert make_rule("always:4", inputs).decide(state(64)).num_draft_tokens == 4
    assert make_rule("batch_threshold:3,9", inputs).decide(state(10)).num_draft_tokens == 0
    assert make_rule("batch_table:[[1,4,5],[5,9,2]]", inputs).decide(state(7)).num_draft_tokens == 2
    with pytest.raises(ConfigError, match="choose one of never, always"):
        make_rule("magic", inputs)
    with pytest.raises(ConfigError, match="efficient-rollout calibrate"):
        make_rule("cost_model", RuleInputs(max_draft_tokens=7))
    for bad in ("always:x", "never:3", "batch_table:[[1,4]]", "batch_table:[[1,4,2],[3,9,1]]", "published:6"):
        with pytest.raises(ConfigError):
            make_rule(bad, inputs)


def test_a_compiled_table_drafts_less_in_larger_batches(table: TickTable) -> None:
    rule = make_rule("batch_table", RuleInputs(max_draft_tokens=7, table=table, prior_acceptance=0.9))
    assert isinstance(rule, BatchTable)
    assert rule.decide(state(1)).num_draft_tokens >= 3
    assert rule.decide(state(128)).num_draft_tokens == 0
    assert expected_tokens(0.9, rule.ranges[0][2]) > 2.5
