"""Replays: exact arithmetic where it is known, and the controller under poisoned inputs."""

import numpy as np
import pytest
from controller_support import a100_ticks

from efficient_rollout.controller.rule import Decision, DecodeState, Rule, RuleInputs, TickObservation, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.roofline import PARAMETERS
from efficient_rollout.cost_model.speedup import expected_tokens
from efficient_rollout.simulator.fleet import Outcome, World, simulate
from efficient_rollout.simulator.trace import Trace, draw_trace

MAX_K = 11


@pytest.fixture(scope="module")
def table() -> TickTable:
    return a100_ticks()


@pytest.fixture(scope="module")
def trace() -> Trace:
    return draw_trace("lognormal:300,1.0,3000", 64, 1, seed=3)


def replay(trace: Trace, world: World, rule: str, engines: int = 1) -> Outcome:
    inputs = RuleInputs(max_draft_tokens=MAX_K, table=world.table)
    return simulate(trace, [make_rule(rule, inputs) for _ in range(engines)], world)


def test_plain_decoding_takes_one_tick_a_token(table):
    trace = Trace(np.array([100]), np.array([50]))
    outcome = replay(trace, World(table=table, acceptance=0.9), "never")
    ticks = sum(float(table.by_length(1, 100.0 + i)[0]) for i in range(50))
    prefill = 100 * float(np.exp(table.model.log_parameters[0, PARAMETERS.index("row_compute_s")]))
    assert outcome.makespan_s == pytest.approx(ticks + prefill, rel=1e-6)
    assert outcome.seconds_by_length == {0: pytest.approx(outcome.makespan_s)}
    assert outcome.num_tokens == 50
    assert outcome.tokens_per_s == pytest.approx(50 / outcome.makespan_s)
    assert outcome.ticks_by_reason == {"never": 50}


def test_tokens_per_tick_follow_the_formula(table):
    trace = Trace(np.full(50, 64), np.full(50, 1000))
    outcome = replay(trace, World(table=table, acceptance=0.8), "always:4")
    ticks = sum(outcome.ticks_by_reason.values())
    assert 1000 / ticks == pytest.approx(expected_tokens(0.8, 4), rel=0.12)  # the last tick waits for the slowest


def test_engines_share_requests_in_turn_and_do_not_disturb_each_other(table):
    trace = Trace(np.full(4, 64), np.array([30, 90, 30, 90]))
    outcome = replay(trace, World(table=table, acceptance=0.9), "never", engines=2)
    alone = replay(Trace(np.full(2, 64), np.array([30, 30])), World(table=table, acceptance=0.9), "never")
    assert outcome.engine_seconds[0] == pytest.approx(alone.makespan_s)
    assert outcome.engine_seconds[1] > 2.5 * outcome.engine_seconds[0]
    assert sum(outcome.seconds_by_length.values()) == pytest.approx(float(outcome.engine_seconds.sum()))


class Diary(Rule):
    """Asks for four drafts at every tick, and writes down what it sees and is told."""

    def __init__(self) -> None:
        self.states: list[DecodeState] = []
        self.told: list[TickObservation] = []

    def decide(self, state: DecodeState) -> Decision:
        self.states.append(state)
        return Decision(4, "four")

    def observe(self, observation: TickObservation) -> None:
        self.told.append(observation)


def told(trace: Trace, world: World) -> tuple[Diary, Outcome]:
    diary = Diary()
    return diary, simulate(trace, [diary], world)


def test_the_first_tick_computes_every_prompt_and_says_so(table):
    diary, _ = told(Trace(np.array([100, 60]), np.array([9, 9])), World(table=table, acceptance=0.9))
    assert [state.num_prefill_tokens for state in diary.states[:2]] == [160, 0]
    assert [observation.had_prefill for observation in diary.told[:2]] == [True, False]


def test_no_request_drafts_more_than_it_may_emit(table):
    diary, _ = told(Trace(np.full(3, 64), np.array([2, 6, 12])), World(table=table, acceptance=1.0))
    first, second = diary.told[1:3]
    assert first.attempts_per_position == first.accepted_per_position == (3, 2, 2, 2)
    assert second.attempts_per_position == (1, 1, 1, 1), "the second has one token left, and drafts none"


def test_what_follows_a_rejected_draft_was_not_judged(table):
    diary, _ = told(Trace(np.array([64]), np.array([6])), World(table=table, acceptance=0.0))
    assert diary.told[1].attempts_per_position == (1, 0, 0, 0)


@pytest.mark.parametrize(("num_ticks", "sd"), [(1, 0.1), (25, 0.02)])
def test_jitter_is_log_normal_and_new_at_every_tick(table, num_ticks, sd):
    trace = Trace(np.full(1000, 64), np.full(1000, num_ticks))
    calm, jittered = (
        replay(trace, World(table=table, acceptance=0.0, jitter_sd=jitter), "never", engines=1000).engine_seconds
        for jitter in (0.0, 0.1)
    )
    prefill = 64 * float(np.exp(table.model.log_parameters[0, PARAMETERS.index("row_compute_s")]))
    log_ratios = np.log((jittered - prefill) / (calm - prefill))
    assert log_ratios.std() == pytest.approx(sd, rel=0.1)
    assert log_ratios.mean() == pytest.approx(0.0, abs=0.01)


def test_the_same_seed_gives_the_same_rollout(table, trace):
    world = World(table=table, acceptance=0.9, jitter_sd=0.02)
    assert replay(trace, world, "cost_model").makespan_s == replay(trace, world, "cost_model").makespan_s


def test_cost_model_beats_every_baseline_on_a_long_tailed_rollout(table, trace):
    world = World(table=table, acceptance=0.92, jitter_sd=0.02)
    ours = replay(trace, world, "cost_model").makespan_s
    for baseline in ("never", "always:4", "always:7", "published", "batch_table"):
        assert ours <= replay(trace, world, baseline).makespan_s * 1.01, baseline


@pytest.mark.parametrize(
    "disturbance",
    [
        {"acceptance": 0.95, "acceptance_after": (8000, 0.0)},
        {"acceptance": 0.5, "jitter_sd": 0.15},
    ],
)
def test_disturbances_never_cost_more_than_five_per_cent(table, trace, disturbance):
    world = World(**{"table": table, "jitter_sd": 0.02, **disturbance})
    plain, ours = replay(trace, world, "never").makespan_s, replay(trace, world, "cost_model").makespan_s
    assert ours <= 1.05 * plain
