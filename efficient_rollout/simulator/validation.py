"""Simulated against measured makespans: what `bench rollout --json` measured, replayed under the same work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
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
    """Holds one rollout of one arm: its prompts with the lengths that were really emitted, and its makespan.

    `acceptance` is per token; None where nothing was drafted.
    """

    trace: Trace
    seconds: float
    acceptance: float | None


def acceptance_from(mean_accepted_length: float, mean_draft_tokens: float) -> float:
    """Return the per-token acceptance a with (1 - a^(k+1)) / (1 - a) = L, for averages L and k over verify passes."""
    acceptance = np.linspace(0.0, 1.0, 100_000, endpoint=False)
    tokens = (1.0 - acceptance ** (mean_draft_tokens + 1.0)) / (1.0 - acceptance)
    return float(np.interp(mean_accepted_length, tokens, acceptance))


def read_measured(path: Path) -> tuple[int, dict[str, list[MeasuredRound]]]:
    """Return the upper bound of every decision in a benchmark's JSON file, and the rounds of each arm that has a rule.

    Raises:
        InputFileError: It is missing, malformed, of another schema version, or has no arm that can be simulated.
    """
    again = "give a file of: efficient-rollout bench rollout --json FILE"
    data = read_json(path, what="the benchmark", remedy=again)
    if isinstance(data, dict) and data.get("schema_version", _SCHEMA_VERSION) != _SCHEMA_VERSION:
        raise InputFileError(f"{path} has schema version {data['schema_version']!r}; this program reads 1")
    try:
        prompts = [[prompt for prompt, _ in requests] for requests in data["work"]]
        arms = {
            name: [_round(*pair) for pair in zip(prompts, arm["rounds"], strict=True)]
            for name, arm in data["arms"].items()
            if _rule_name(name) is not None
        }
        max_draft_tokens = int(data["settings"]["max_draft_tokens"])
    except (KeyError, TypeError, ValueError) as error:
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
    acceptance = None
    if metrics.get(_METRIC + "draft_tokens"):
        length, rate = metrics[_METRIC + "mean_accepted_length"], metrics[_METRIC + "acceptance_rate"]
        # Accepted per pass over accepted per draft is drafts per pass; where none was accepted, any length tells.
        acceptance = acceptance_from(length, (length - 1.0) / rate) if rate > 0.0 else 0.0
    trace = Trace(np.array(prompt_tokens, dtype=np.int64), lengths)
    return MeasuredRound(trace=trace, seconds=float(result["seconds"]), acceptance=acceptance)


def compare(
    measured: Mapping[str, list[MeasuredRound]], table: TickTable, *, seed: int = 0, jitter_sd: float = 0.0
) -> dict[str, dict[str, Any]]:
    """Replay every round of every arm, and return `judged` of each; arguments as in `World` and `simulate`.

    A rule keeps what it learned in earlier rounds, as in the benchmark. The table is of a profile that was measured on
    the same machine, up to the largest k that was drafted.
    """
    inputs = RuleInputs(max_draft_tokens=table.max_draft_tokens, table=table)
    # Of a round's arms that drafted, for the others, whose rules it tells nothing but their prior.
    known = [
        [one.acceptance for one in arms if one.acceptance is not None] for arms in zip(*measured.values(), strict=True)
    ]
    usual = [mean(acceptances) if acceptances else _DEFAULT_ACCEPTANCE for acceptances in known]
    compared = {}
    for arm, rounds in measured.items():
        name = _rule_name(arm)
        assert name is not None
        rule = make_rule(name, inputs)
        simulated, acceptances = [], []
        for number, played in enumerate(rounds):
            if number:
                rule.mark_stale()
            acceptances.append(usual[number] if played.acceptance is None else played.acceptance)
            world = World(table=table, acceptance=acceptances[-1], jitter_sd=jitter_sd)
            simulated.append(simulate(played.trace, [rule], world, seed=seed + number).makespan_s)
        compared[arm] = judged([played.seconds for played in rounds], simulated, acceptances)
    return compared


def judged(measured_s: list[float], simulated_s: list[float], acceptance: list[float]) -> dict[str, Any]:
    """Return an arm's makespans, an entry a round, with the spread of simulated over measured; JSON types.

    It is within tolerance where the median round is predicted within `TOLERANCE`.
    """
    ratio = spread([ours / theirs for ours, theirs in zip(simulated_s, measured_s, strict=True)])
    return {
        "measured_s": measured_s,
        "simulated_s": simulated_s,
        "acceptance": acceptance,
        "ratio": ratio,
        "is_within_tolerance": abs(ratio["median"] - 1.0) <= TOLERANCE,
    }


def report(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line per arm: medians, their ratio, and whether it is within tolerance."""
    lines = [["arm", "measured s", "simulated s", "simulated over measured", ""]]
    for name, arm in compared.items():
        seconds = [f"{median(arm[kind]):.2f}" for kind in ("measured_s", "simulated_s")]
        off = "" if arm["is_within_tolerance"] else f"off by more than {TOLERANCE:.0%}"
        lines.append([name, *seconds, bracketed(arm["ratio"], digits=3), off])
    return aligned(lines, left=(0, 4))
