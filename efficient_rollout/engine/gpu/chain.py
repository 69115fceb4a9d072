"""What one draft step does in vLLM's V2 model runner, and what begins a chain of them; all of it on the device.

A plain step feeds a request's newest token and draws one behind it. A step that looks up feeds copies of the request's
own text as well, draws at each row with the noise of its position, and keeps the copies that equal the draws before
them. To the attention layers it is a verify pass of so many drafts.
"""

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.input_batch import InputBatch

from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.drafter.chains import MOST_COPIES
from efficient_rollout.engine.gpu.graphs import DEFAULT_LIMIT
from efficient_rollout.errors import UnsupportedModelError

if TYPE_CHECKING:
    from efficient_rollout.engine.gpu.speculator import SelfDraftSpeculator

# Where nothing was drafted. What stood there need not be of the vocabulary: stock (0.32) writes -1 behind a chain.
ANY_TOKEN = 0
# Chains whose counts may still be on their way: those of this tick and the one before it.
_LATE_CHAINS = 2
# Of what a chain taught, so much counts after each that follows: half after fourteen.
_KEPT_OF_BEFORE = 0.95


class PlainSteps:
    """Drafts a token per request and step, with a speculator's buffers, model and draws."""

    # Of a request in a pass.
    num_rows = 1

    def __init__(self, speculator: "SelfDraftSpeculator") -> None:
        self._of = speculator
        self._starts = torch.arange(speculator.max_num_reqs + 1, dtype=torch.int32, device=speculator.device)
        # On the device, so that one graph writes every column of `draft_tokens`.
        self._step = torch.zeros((), dtype=torch.int64, device=speculator.device)

    def fits(self, num_requests: int) -> bool:
        """Tell whether a batch of so many requests takes these steps."""
        return True

    def num_passes(self, num_draft_tokens: int) -> int:
        """Return the passes to run for so many drafts a request."""
        return num_draft_tokens

    def longest(self, step: int) -> int:
        """Return by how many tokens the text of a pass may be longer than the pass of the policy was."""
        return step + 1

    def begin(self, input_batch: InputBatch, num_rejected: torch.Tensor, last_sampled: torch.Tensor) -> None:
        """Fill the buffers of a chain's first step, without waiting for the device.

        Args:
            input_batch: Of the pass that sampled the newest tokens.
            num_rejected: [num_requests], drafts of that pass that were rejected.
            last_sampled: [max requests], the newest token of each request's state.
        """
        n, buffers, most = input_batch.num_reqs, self._of.input_buffers, self._of.max_model_len
        positions = self._begin(input_batch, num_rejected)
        buffers.positions[:n] = positions
        buffers.seq_lens[:n] = (positions + 1).clamp(max=most)
        buffers.input_ids[:n] = last_sampled.view(-1)[input_batch.idx_mapping].int()
        self._step.zero_()

    def _begin(self, input_batch: InputBatch, num_rejected: torch.Tensor) -> torch.Tensor:
        """Return the newest tokens' positions; what a graph's padding reads is filled."""
        n, buffers = input_batch.num_reqs, self._of.input_buffers
        buffers.seq_lens[n:].zero_()
        buffers.query_start_loc[: n + 1] = self._starts[: n + 1] * self.num_rows
        buffers.query_start_loc[n + 1 :] = n * self.num_rows
        return (input_batch.seq_lens[:n] - num_rejected[:n]).clamp(max=self._of.max_model_len - 1)

    def forget(self) -> None:
        """Forget every request: there is none in what is captured."""

    def end(self, num_requests: int, num_passes: int) -> None:
        """Count a chain that was begun with `begin`; one of no requests has no passes to count."""
        self._of.drafting.num_passes += num_passes
        self._of.drafting.num_chains_fed += num_passes * num_requests

    def forget_copies(self) -> None:
        """Forget what copies taught: ranks on which a chain failed may have counted differently."""

    def slots(self, num_requests: int, num_tokens: int) -> torch.Tensor:
        """Say where a pass writes KV: int64 [groups, num_tokens], in buffers that stay."""
        of = self._of
        return of.block_tables.compute_slot_mappings(
            of.idx_mapping[:num_requests],
            of.input_buffers.query_start_loc[: num_requests + 1],
            of.input_buffers.positions[: num_requests * self.num_rows],
            num_tokens,
        )

    def states_of_rows(self, num_rows: int) -> torch.Tensor:
        """Return the state of each row's request: integers [num_rows]; -1 where there is none."""
        return self._of.idx_mapping[:num_rows]

    def step(
        self, num_requests: int, num_tokens: int, metadata: Any, slot_mappings: Any, num_tokens_across_dp: Any
    ) -> None:
        """Run a pass, draw, and advance; all of it is on the device, at fixed addresses."""
        of, buffers = self._of, self._of.input_buffers
        n = num_requests * self.num_rows
        tokens, positions = buffers.input_ids[:num_tokens], buffers.positions[:num_tokens]
        hidden = of._run_model(tokens, positions, metadata, slot_mappings, num_tokens_across_dp)
        self._advance(num_requests, of.ranks.draw(of._draw, of.model.compute_logits(hidden[:n])))

    def _advance(self, n: int, tokens: torch.Tensor) -> None:
        of, buffers = self._of, self._of.input_buffers
        # Nothing writes what padding attends to. It may be no number, and its token none of the vocabulary's.
        tokens = tokens.masked_fill(of.idx_mapping[:n] < 0, ANY_TOKEN)
        # An index that is a number, even one on the device, would be read by the host.
        of.draft_tokens[:n].scatter_(1, self._step.expand(n, 1), tokens.view(n, 1))
        buffers.input_ids[:n] = tokens.int()
        buffers.positions[:n] = (buffers.positions[:n] + 1).clamp(max=of.max_model_len - 1)
        lengths = buffers.seq_lens[:n]
        lengths.copy_(torch.where(lengths > 0, (lengths + 1).clamp(max=of.max_model_len), lengths))
        # Warm-ups of a capture count too, and must stay among the columns.
        self._step.add_(1).remainder_(of.num_speculative_steps)


class LookupSteps(PlainSteps):
    """Checks so many copies of each request's own text in every step; chains of a batch grow by what stands."""

    def __init__(self, speculator: "SelfDraftSpeculator", num_copies: int) -> None:
        # Needs Triton, which an engine without copies may lack.
        from efficient_rollout.drafter.cuda.lookup import CopyingChains

        super().__init__(speculator)
        self._chains = CopyingChains(
            max_requests=speculator.max_num_reqs,
            max_tokens=speculator.max_model_len,
            num_columns=speculator.num_speculative_steps,
            num_copies=num_copies,
            vocabulary=speculator.vocab_size,
            device=speculator.device,
        )
        self.num_rows = num_copies + 1
        limit = speculator.vllm_config.compilation_config.max_cudagraph_capture_size or DEFAULT_LIMIT
        self._most_requests = min(limit, speculator.max_num_tokens) // self.num_rows
        self._kept = KeptCopies(self._chains.counts)

    def fits(self, num_requests: int) -> bool:
        """Tell whether a batch is small enough: rows of a large one are dear, and have no graph."""
        return num_requests <= self._most_requests

    def num_passes(self, num_draft_tokens: int) -> int:
        # They grow chains to so many drafts on average, as far as copies have stood so far.
        return math.ceil(num_draft_tokens / (1.0 + self._kept.a_pass()))

    def longest(self, step: int) -> int:
        return self._of.num_speculative_steps

    def begin(self, input_batch: InputBatch, num_rejected: torch.Tensor, last_sampled: torch.Tensor) -> None:
        of, n = self._of, input_batch.num_reqs
        firsts = self._begin(input_batch, num_rejected)
        texts = of.runner.req_states.all_token_ids.gpu
        self._chains.begin(firsts, of.idx_mapping[:n], texts, last_sampled.view(-1))
        self._feed(n)

    def forget(self) -> None:
        self._chains.firsts.fill_(-1)

    def end(self, num_requests: int, num_passes: int) -> None:
        """Count a chain; what stood in it is known two chains later."""
        if num_passes == 0:
            return
        num_fed, num_kept = self._kept.next()
        counts = {"num_copies": num_fed * (self.num_rows - 1), "num_copies_kept": num_kept}
        self._of.drafting.add(DraftCounts(num_passes=num_passes, num_chains_fed=num_fed, **counts))

    def forget_copies(self) -> None:
        self._chains.counts.zero_()
        self._kept = KeptCopies(self._chains.counts)

    def slots(self, num_requests: int, num_tokens: int) -> torch.Tensor:
        """Say where a pass writes KV: nowhere in the policy's, which rows before a chain's first would overwrite."""
        slots, n = super().slots(num_requests, num_tokens), num_requests * self.num_rows
        positions = self._of.input_buffers.positions[:n].view(num_requests, self.num_rows)
        is_policys = positions < self._chains.firsts[:num_requests, None]
        slots[:, :n].masked_fill_(is_policys.view(-1), PAD_SLOT_ID)
        return slots

    def states_of_rows(self, num_rows: int) -> torch.Tensor:
        states = self._of.idx_mapping[: num_rows // self.num_rows, None]
        return states.expand(-1, self.num_rows).reshape(-1)

    def _advance(self, n: int, tokens: torch.Tensor) -> None:
        of = self._of
        self._chains.keep(n, tokens, of.input_buffers.input_ids, of.idx_mapping)
        self._feed(n)

    def _feed(self, n: int) -> None:
        buffers = self._of.input_buffers
        self._chains.feed(n, buffers.input_ids, buffers.positions, buffers.seq_lens, self._of.draft_tokens)


def steps_of(speculator: "SelfDraftSpeculator", *, looks_up: bool) -> tuple[PlainSteps, PlainSteps]:
    """Make a speculator's plain steps, and those that look copies up; the same again where there are none.

    Raises:
        UnsupportedModelError: Copies are to be looked up in an engine that runs each pass together with others.
    """
    plain = PlainSteps(speculator)
    num_copies = min(MOST_COPIES, speculator.num_speculative_steps - 1, speculator.max_model_len - 1)
    if not looks_up or num_copies < 1:
        return plain, plain
    if speculator.dp_size > 1:
        raise UnsupportedModelError(
            "drafter.lookup=own: these engines run every pass together, and chains take another number of passes in "
            f"each (data_parallel_size={speculator.dp_size}): set drafter.lookup=off"
        )
    return plain, LookupSteps(speculator, num_copies)


class KeptCopies:
    """Tells how many copies stand in a pass, from counters on the device.

    They are read two chains late: by then they have arrived, or what the device has yet to do before is less than what
    it has been given behind, so that it never waits for the host. And every rank of an engine reads the same, as it
    must to run as many passes.

    Args:
        counts: int64 [2] on the device, since the start: requests fed in passes, copies that stood.
    """

    def __init__(self, counts: torch.Tensor) -> None:
        self._counts, self._is_gpu = counts, counts.is_cuda
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._last = [0, 0]
        self._num_fed = self._num_kept = 0.0

    def a_pass(self) -> float:
        """Return copies that stand for a request in a pass; 0 before any is known."""
        return self._num_kept / self._num_fed if self._num_fed else 0.0

    def next(self) -> tuple[int, int]:
        """End a chain; return what an earlier one has added to both counters."""
        on_host = torch.empty(2, dtype=torch.int64, pin_memory=self._is_gpu)
        on_host.copy_(self._counts, non_blocking=True)
        event = torch.cuda.Event() if self._is_gpu else None
        if event is not None:
            event.record()
        self._pending.append((on_host, event))
        if len(self._pending) <= _LATE_CHAINS:
            return 0, 0
        known, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        total = known.tolist()
        fed, kept = (now - before for now, before in zip(total, self._last, strict=True))
        self._last = total
        self._num_fed = self._num_fed * _KEPT_OF_BEFORE + fed
        self._num_kept = self._num_kept * _KEPT_OF_BEFORE + kept
        return fed, kept
