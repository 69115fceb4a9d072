"""Replay a trace tick by tick on many engines, each with a rule object of its own.

Seconds of a tick come from a latency table, accepted drafts from a seeded random number per request and tick. Rules are
told of drafts alone, and of no seconds: none of this package's learns from them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.rule import DecodeState, Rule, TickObservation
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.roofline import PARAMETERS
from efficient_rollout.cost_model.table import PLAIN
from efficient_rollout.simulator.trace import Trace

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Says what is true, whatever the rules believe: seconds and per-token acceptance.

    `acceptance_after` is (generated tokens of an engine, acceptance from then on); `jitter_sd` the standard deviation
    of the log of a tick's seconds.
    """

    table: TickTable
    acceptance: float
    acceptance_after: tuple[float, float] = (math.inf, 0.0)
    jitter_sd: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says what a rollout took."""

    engine_seconds: Array  # (num_engines,): when each engine finished
    num_tokens: int  # of all responses
    seconds_by_length: dict[int, float]  # of engines, by k; prefill included
    ticks_by_reason: dict[str, int]

    @property
    def makespan_s(self) -> float:
        """Return the seconds until the last engine finished."""
        return float(self.engine_seconds.max())

    @property
    def tokens_per_s(self) -> float:
        """Return the response tokens of the whole fleet over the makespan."""
        return self.num_tokens / self.makespan_s


def simulate(trace: Trace, rules: Sequence[Rule], world: World, *, seed: int = 0) -> Outcome:
    """Replay a trace, whose requests are submitted at time 0, with a rule for each engine, which runs its own at once.

    The largest k of the world's table bounds every decision; `seed` draws acceptance and jitter.
    """
    engine_of = trace.assigned(len(rules))
    fleet = [_Engine(trace, engine_of == number, rule, world) for number, rule in enumerate(rules)]
    rng = np.random.default_rng(seed)
    for engine in fleet:
        engine.prefill()
        while engine.remaining.size:
            engine.tick(rng)
    seconds = np.sum([engine.seconds for engine in fleet], axis=0)
    return Outcome(
        np.array([engine.seconds.sum() for engine in fleet]),
        int(trace.response_tokens.sum()),
        {k: float(spent) for k, spent in enumerate(seconds) if spent > 0.0},
        dict(sum((engine.reasons for engine in fleet), Counter())),
    )


class _Engine:
    """Holds an engine's running requests, the tokens that remain of each and its context; and seconds spent by k."""

    def __init__(self, trace: Trace, is_mine: NDArray[np.bool_], rule: Rule, world: World) -> None:
        self.remaining: Index = trace.response_tokens[is_mine]
        self.context: Array = trace.prompt_tokens[is_mine].astype(np.float64)
        self.rule, self.world, self.limit = rule, world, world.table.max_draft_tokens
        self.seconds, self.generated, self.reasons = np.zeros(self.limit + 1), 0, Counter[str]()

    def prefill(self) -> None:
        """Do one tick that computes every prompt: plain, and as long as the matrix products of its tokens."""
        per_token_s = float(np.exp(self.world.table.model.log_parameters[PLAIN, PARAMETERS.index("row_compute_s")]))
        num_tokens = int(self.context.sum())
        self.rule.decide(self._state(num_tokens))
        self.rule.observe(
            TickObservation(num_draft_tokens=0, num_requests=len(self.context),
                            mean_context_tokens=float(self.context.mean()), had_prefill=True)
        )  # fmt: skip
        self.seconds[0] += num_tokens * per_token_s

    def tick(self, rng: np.random.Generator) -> None:
        """Ask the rule, do as it says, and tell it."""
        decision, context = self.rule.decide(self._state(0)), float(self.context.mean())
        k, batch = decision.num_draft_tokens, len(self.context)
        # As in an engine: no chain is longer than what some request may still emit.
        length = min(k, int(self.remaining.max()) - 1)
        jitter = math.exp(self.world.jitter_sd * rng.standard_normal()) if self.world.jitter_sd else 1.0
        self.seconds[length] += jitter * self.world.table.by_length(batch, context)[length]
        self.reasons[decision.reason] += 1
        drafted = np.minimum(length, self.remaining - 1)
        accepted = self._accepted(drafted, rng)
        self.rule.observe(
            TickObservation(
                num_draft_tokens=k, num_requests=batch, mean_context_tokens=context,
                attempts_per_position=_reaching(np.minimum(accepted + 1, drafted), k),
                accepted_per_position=_reaching(accepted, k),
            )
        )  # fmt: skip
        self.generated += int(accepted.sum()) + batch
        runs_on = self.remaining > accepted + 1
        self.remaining, self.context = (self.remaining - accepted - 1)[runs_on], (self.context + accepted + 1)[runs_on]

    def _accepted(self, drafted: Index, rng: np.random.Generator) -> Index:
        if not drafted.any():
            return np.zeros_like(drafted)
        after, late = self.world.acceptance_after
        acceptance = late if self.generated >= after else self.world.acceptance
        draws = np.log(1.0 - rng.random(len(drafted))) / math.log(min(max(acceptance, 1e-12), 1.0 - 1e-12))
        return np.minimum(draws, drafted).astype(np.int64)

    def _state(self, prefill_tokens: int) -> DecodeState:
        return DecodeState(
            num_running_requests=len(self.context), num_waiting_requests=0, num_prefill_tokens=prefill_tokens,
            mean_context_tokens=float(self.context.mean()), max_draft_tokens=self.limit,
        )  # fmt: skip


def _reaching(drafts: Index, k: int) -> tuple[int, ...]:
    """Return how many requests have at least i drafts, for i = 1..k."""
    return tuple(np.bincount(drafts, minlength=k + 1)[::-1].cumsum()[::-1][1 : k + 1].tolist())
