"""Replay a trace tick by tick on many engines, each with a rule object of its own.

All engines take their n-th tick together, as one array operation; their clocks differ. Seconds of a tick come from a
latency table, accepted drafts from a seeded random number per request and tick. Rules are told of drafts alone, and
of no seconds: none of this package's learns from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efficient_rollout.controller.observation import TickObservation
from efficient_rollout.controller.rule import Rule
from efficient_rollout.controller.state import DecodeState
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
    acceptance_after: tuple[int, float] | None = None
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
    fleet = _Fleet(trace, rules, world, seed)
    fleet.prefill()
    while fleet.engine.size:
        fleet.decide()
        fleet.step()
    return fleet.outcome()


class _Fleet:
    """Holds the state of all engines; request arrays hold running requests only."""

    def __init__(self, trace: Trace, rules: Sequence[Rule], world: World, seed: int) -> None:
        num_engines = len(rules)
        self.engine: Index = trace.assigned(num_engines)
        self.remaining: Index = trace.response_tokens.copy()
        self.context: Array = trace.prompt_tokens.astype(np.float64)
        self.rules, self.world, self.limit = rules, world, world.table.max_draft_tokens
        self.rng = np.random.default_rng(seed)
        self.num_tokens = int(trace.response_tokens.sum())
        self.clock = np.zeros(num_engines)
        self.asked: Index = np.zeros(num_engines, dtype=np.int64)
        self.generated = np.zeros(num_engines)
        self.seconds_by_length = np.zeros(self.limit + 1)
        self.reasons: dict[str, int] = {}
        self._count()

    def prefill(self) -> None:
        """Do one tick that computes every prompt: plain, and as long as the matrix products of its tokens."""
        per_token_s = float(np.exp(self.world.table.model.log_parameters[PLAIN, PARAMETERS.index("row_compute_s")]))
        prompt_tokens = np.bincount(self.engine, self.context, len(self.clock))
        for e, rule in enumerate(self.rules):
            rule.decide(self._state(e, int(prompt_tokens[e])))
            rule.observe(TickObservation(num_draft_tokens=0, num_requests=int(self.batch[e]),
                         mean_context_tokens=float(self.mean_context[e]), had_prefill=True))  # fmt: skip
        self.clock += prompt_tokens * per_token_s
        self.seconds_by_length[0] += float(self.clock.sum())

    def decide(self) -> None:
        """Ask the rule of every engine that still runs."""
        for e in np.flatnonzero(self.batch).tolist():
            decision = self.rules[e].decide(self._state(e, 0))
            self.asked[e] = decision.num_draft_tokens
            self.reasons[decision.reason] = self.reasons.get(decision.reason, 0) + 1

    def step(self) -> None:
        """Do one tick of every engine that still runs, and tell its rule."""
        running = np.flatnonzero(self.batch)
        # As in an engine: no chain is longer than what some request may still emit.
        most_useful = np.zeros_like(self.asked)
        np.maximum.at(most_useful, self.engine, self.remaining - 1)
        length = np.minimum(self.asked, most_useful)
        seconds = np.zeros(len(self.clock))
        for e in running.tolist():
            seconds[e] = self.world.table.by_length(int(self.batch[e]), float(self.mean_context[e]))[length[e]]
        if self.world.jitter_sd:
            seconds *= np.exp(self.world.jitter_sd * self.rng.standard_normal(len(seconds)))
        self.clock += seconds
        self.seconds_by_length += np.bincount(length[running], seconds[running], self.limit + 1)
        judged, accepted, emitted = self._accept(length)
        for e in running.tolist():
            self.rules[e].observe(self._observation(e, judged[e], accepted[e]))
        self.generated += np.bincount(self.engine, emitted, len(self.clock))
        self.remaining -= emitted
        self.context += emitted
        keep = self.remaining > 0
        self.engine, self.remaining, self.context = self.engine[keep], self.remaining[keep], self.context[keep]
        self._count()

    def outcome(self) -> Outcome:
        """Return the finished rollout."""
        by_length = {k: float(s) for k, s in enumerate(self.seconds_by_length) if s > 0.0}
        return Outcome(self.clock, self.num_tokens, by_length, self.reasons)

    def _accept(self, length: Index) -> tuple[Index, Index, Index]:
        """Return judged and accepted drafts by engine and number, and the tokens that each running request gains."""
        drafted = np.minimum(length[self.engine], self.remaining - 1)
        accepted = np.zeros(len(drafted), dtype=np.int64)
        if drafted.any():
            acceptance = self._acceptance()[self.engine]
            draws = np.log(1.0 - self.rng.random(len(drafted))) / np.log(np.clip(acceptance, 1e-12, 1.0 - 1e-12))
            accepted = np.minimum(draws, drafted).astype(np.int64)
        return self._per_engine(np.minimum(accepted + 1, drafted)), self._per_engine(accepted), accepted + 1

    def _per_engine(self, drafts: Index) -> Index:
        """Return the requests of each engine by their number of drafts, 0..limit."""
        width = self.limit + 1
        return np.bincount(self.engine * width + drafts, minlength=len(self.clock) * width).reshape(-1, width)

    def _acceptance(self) -> Array:
        if self.world.acceptance_after is None:
            return np.full(len(self.clock), self.world.acceptance)
        after, late = self.world.acceptance_after
        return np.where(self.generated >= after, late, self.world.acceptance)

    def _count(self) -> None:
        num = len(self.clock)
        self.batch: Index = np.bincount(self.engine, minlength=num)
        self.mean_context: Array = np.bincount(self.engine, self.context, num) / np.maximum(self.batch, 1)

    def _state(self, engine: int, prefill_tokens: int) -> DecodeState:
        return DecodeState(
            num_running_requests=int(self.batch[engine]),
            num_waiting_requests=0,
            num_prefill_tokens=prefill_tokens,
            mean_context_tokens=float(self.mean_context[engine]),
            max_draft_tokens=self.limit,
        )

    def _observation(self, engine: int, *drafts: Index) -> TickObservation:
        k = int(self.asked[engine])
        # Requests of which at least i drafts were judged, or accepted, for i = 1..k.
        judged, accepted = (tuple(counts[::-1].cumsum()[::-1][1 : k + 1].tolist()) for counts in drafts)
        return TickObservation(
            num_draft_tokens=k,
            num_requests=int(self.batch[engine]),
            mean_context_tokens=float(self.mean_context[engine]),
            attempts_per_position=judged,
            accepted_per_position=accepted,
        )
