"""Training runs that must be one run: the same but for times, and for what engines did."""

from collections.abc import Mapping
from typing import Any

from efficient_rollout.metrics import names

Steps = Mapping[int, Mapping[str, Any]]

# What differs between two runs of one command: times, and what engines did.
NOT_TRAINING = (
    "time",
    "timing",
    "perf",
    names.PREFIX.rstrip("/"),
    "agent_loop",
    "num_preempted",
    "run_id",
    "run_part",
)
# What differs where engines multiply with other kernels: how far, some 1e-7, their own log-probabilities are from the
# trainer's. Nothing is trained on it.
OF_PRODUCTS = ("rollout_probs_diff", "rollout_actor_probs", "rollout_corr")


def training(metrics: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a step trained on, and did."""
    parts = (*NOT_TRAINING, *without)
    return {name: value for name, value in metrics.items() if not any(part in name for part in parts)}


def assert_same_training(
    one: Steps, other: Steps, *, num_steps: int, required: frozenset[str], without: tuple[str, ...] = ()
) -> None:
    """All metrics of every step are equal, those that are required among them."""
    assert sorted(one) == sorted(other) == list(range(1, num_steps + 1))
    for step in one:
        assert training(one[step], without) == training(other[step], without)
        assert required <= training(one[step], without).keys()


def assert_one_drafted(one: Steps, other: Steps) -> None:
    """One run drafted, and was right and wrong; the other never did."""
    drafted = sum(metrics[names.DRAFT_TOKENS] for metrics in one.values())
    accepted = sum(metrics[names.ACCEPTED_TOKENS] for metrics in one.values())
    assert 0.5 * drafted < accepted < drafted, "both outcomes must have happened"
    assert sum(metrics[names.DRAFT_TOKENS] for metrics in other.values()) == 0
