"""Ticks in which nothing is drafted and nothing verified run as those of an engine that does not speculate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput


def is_plain(scheduler_output: SchedulerOutput) -> bool:
    """Whether a tick verifies no drafts and is not asked for any."""
    return scheduler_output.num_spec_tokens_to_schedule == 0 and not scheduler_output.scheduled_spec_decode_tokens


@contextmanager
def speculation_hidden(model_runner: Any) -> Iterator[None]:
    """For one of a plain tick's two calls, the stock runner takes its path without speculation.

    With it, the runner lays out inputs for a drafter and reads sampled tokens back for one, whether or not any draft is
    wanted. Both calls of a tick must see the same.
    """
    speculation, model_runner.speculative_config = model_runner.speculative_config, None
    try:
        yield
    finally:
        model_runner.speculative_config = speculation
