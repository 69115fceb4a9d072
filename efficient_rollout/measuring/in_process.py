"""Engines of a measurement in this process: they start in seconds, and share its interpreter with whoever asks them.

As `starting.py`, whose functions these stand in for.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm import LLM

from efficient_rollout.config import Settings
from efficient_rollout.engine.environment import engines_in_this_process
from efficient_rollout.engine.executor import InProcessExecutor
from efficient_rollout.measuring.starting import EngineLimits, self_drafting_args
from efficient_rollout.measuring.starting import start_plain as _start_plain
from efficient_rollout.measuring.starting import start_vllm_lookup as _start_vllm_lookup


@contextmanager
def quiet() -> Iterator[None]:
    """Log errors alone in this process until the block ends.

    A command's own lines are the point, and engines set levels anew.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def start_plain(model: str, limits: EngineLimits) -> Any:
    """Start stock vLLM, without any class of this package."""
    with engines_in_this_process():
        return _start_plain(model, limits)


def start_vllm_lookup(model: str, limits: EngineLimits, method: str, num_draft_tokens: int) -> Any:
    """Start stock vLLM with drafts it looks up itself."""
    with engines_in_this_process():
        return _start_vllm_lookup(model, limits, method, num_draft_tokens)


def start_self_drafting(model: str, limits: EngineLimits, settings: Settings) -> Any:
    """Start the product's engine, scripted and recorded, but for its worker's process."""
    with engines_in_this_process():
        args = self_drafting_args(model, limits, settings)
        return LLM(**{**args, "distributed_executor_backend": InProcessExecutor})
