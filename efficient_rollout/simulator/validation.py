"""Simulated against measured makespans: what `bench rollout --json` measured, replayed under the same work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from efficient_rollout.controller.rule import ALIASES, RuleInputs, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.errors import InputFileError
from efficient_rollout.files import read_json
from efficient_rollout.rule_table import RULES
from efficient_rollout.simulator.fleet import World, simulate
from efficient_rollout.simulator.trace import Trace
from efficient_rollout.tables import aligned, bracketed, spread

TOLERANCE = 0.10
_SCHEMA_VERSION = 1
_METRIC = "efficient_rollout/"
_DEFAULT_ACCEPTANCE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRound:
    """Holds one rollout of one arm.

    Attributes:
        trace: Prompt lengths, and the lengths that were really emitted.
        seconds: Makespan.
        acceptance: Per-token acceptance; None where nothing was drafted.
    """

    trace: Trace
    seconds: float
    acceptance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Holds one arm, an entry a round.

    Attributes:
        measured_s: Makespans of the real engine.
        simulated_s: Makespans of the simulator.
        acceptance: What the simulator took for true.
    """

    measured_s: list[float]
    simulated_s: list[float]
    acceptance: list[float]

    @property
    def ratios(self) -> list[float]:
        """Return simulated over measured seconds; 1.0 is a perfect prediction."""
        return [ours / theirs for ours, theirs in zip(self.simulated_s, self.measured_s, strict=True)]

    @property
    def is_within_tolerance(self) -> bool:
        """Tell whether the median round is predicted within `TOLERANCE`."""
        return abs(median(self.ratios) - 1.0) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "measured_s": self.measured_s,
            "simulated_s": self.simulated_s,
            "acceptance": self.acceptance,
            "ratio": spread(self.ratios),
            "is_within_tolerance": self.is_within_tolerance,
        }


def acceptance_from(mean_accepted_length: float, mean_draft_tokens: float) -> float:
    """Return the per-token acceptance a with (1 - a^(k+1)) / (1 - a) = L, by bisection.

    Args:
        mean_accepted_length: L, tokens a request gains per verify pass, at least 1.
        mean_draft_tokens: k, drafts per verify pass; an average over passes need not be an integer.
    """
    low, high = 0.0, 1.0 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2.0
        tokens = (1.0 - middle ** (mean_draft_tokens + 1.0)) / (1.0 - middle)
        low, high = (middle, high) if tokens < mean_accepted_length else (low, middle)
    return low


def read_measured(path: Path) -> tuple[int, dict[str, list[MeasuredRound]]]:
    """Read the JSON file of `efficient-rollout bench rollout`.

    Returns:
        The upper bound of every decision; and the rounds by arm, without arms that cannot be simulated.

    Raises:
        InputFileError: It is missing, malformed, of another schema version, or has no arm that can be simulated.
    """
    again = "give a file of: efficient-rollout bench rollout --json FILE"
    data = read_json(path, what="the benchmark", remedy=again)
    try:
        if data["schema_version"] != _SCHEMA_VERSION:
            raise InputFileError(f"{path} has schema version {data['schema_version']!r}; this program reads 1")
        prompts = [[prompt for prompt, _ in requests] for requests in data["work"]]
        arms = {
            name: [_round(*pair) for pair in zip(prompts, arm["rounds"], strict=True)]
            for name, arm in data["arms"].items()
            if _rule_name(name) is not None
        }
        max_draft_tokens = int(data["settings"]["max_draft_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputFileError):
            raise
        raise InputFileError(
            f"{path} is no result of a benchmark ({type(error).__name__}: {error}); {again}"
        ) from error
    if not arms or not all(arms.values()):
        raise InputFileError(f"{path} holds no round of an arm that can be simulated; {again}")
    return max_draft_tokens, arms


def _rule_name(arm: str) -> str | None:
    # None for `plain` and `ngram`: stock engines, whose ticks no profile has.
    bare, separator, argument = arm.partition(":")
    rule = ALIASES.get(bare, bare)
    return f"{rule}{separator}{argument}" if rule in RULES else None


def _round(prompt_tokens: Sequence[int], result: Mapping[str, Any]) -> MeasuredRound:
    lengths = np.maximum(np.array(result["response_tokens"], dtype=np.int64), 1)
    metrics = result["metrics"]
    gained = metrics.get(_METRIC + "mean_accepted_length", 1.0) - 1.0
    acceptance = None
    if metrics.get(_METRIC + "draft_tokens"):
        rate = metrics[_METRIC + "acceptance_rate"]
        # Accepted per pass over accepted per draft is drafts per pass; where none was accepted, any length tells.
        acceptance = acceptance_from(1.0 + gained, gained / rate) if rate > 0.0 else 0.0
    return MeasuredRound(
        trace=Trace(np.array(prompt_tokens, dtype=np.int64), lengths),
        seconds=float(result["seconds"]),
        acceptance=acceptance,
    )


def compare(
    measured: Mapping[str, list[MeasuredRound]], table: TickTable, *, seed: int = 0, jitter_sd: float = 0.0
) -> dict[str, Comparison]:
    """Replay every round of every arm; a rule keeps what it learned in earlier rounds, as in the benchmark.

    Args:
        measured: What real engines did, by arm.
        table: Of the profile measured on the same machine, up to the largest k that they drafted.
        seed: Of acceptance and jitter.
        jitter_sd: As in `World`.
    """
    inputs = RuleInputs(max_draft_tokens=table.max_draft_tokens, table=table)
    compared = {}
    for arm, rounds in measured.items():
        name = _rule_name(arm)
        assert name is not None
        rule = make_rule(name, inputs)
        acceptances = [_acceptance(measured, arm, number) for number in range(len(rounds))]
        simulated = []
        for number, (played, acceptance) in enumerate(zip(rounds, acceptances, strict=True)):
            if number:
                rule.mark_stale()
            world = World(table=table, acceptance=acceptance, jitter_sd=jitter_sd)
            simulated.append(simulate(played.trace, [rule], world, seed=seed + number).makespan_s)
        compared[arm] = Comparison(
            measured_s=[played.seconds for played in rounds], simulated_s=simulated, acceptance=acceptances
        )
    return compared


def _acceptance(measured: Mapping[str, list[MeasuredRound]], arm: str, number: int) -> float:
    """Return the arm's own; where it drafted nothing, the mean of the arms that did in the same round."""
    own = measured[arm][number].acceptance
    if own is not None:
        return own
    others = [rounds[number].acceptance for rounds in measured.values()]
    known = [acceptance for acceptance in others if acceptance is not None]
    return sum(known) / len(known) if known else _DEFAULT_ACCEPTANCE


def report(compared: Mapping[str, Comparison]) -> str:
    """Return one line per arm: medians, their ratio, and whether it is within tolerance."""
    lines = [["arm", "measured s", "simulated s", "simulated over measured", ""]]
    lines += [
        [
            name,
            f"{median(arm.measured_s):.2f}",
            f"{median(arm.simulated_s):.2f}",
            bracketed(spread(arm.ratios), digits=3),
            "" if arm.is_within_tolerance else f"off by more than {TOLERANCE:.0%}",
        ]
        for name, arm in compared.items()
    ]
    return aligned(lines, left=(0, 4))
