"""Draft with the quantized self, on the policy's own KV cache."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from efficient_rollout.config import Lookup
from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.drafter.chains import MOST_COPIES, Chains, EndedResponses, Fed, Tokens
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.stopwatch import Stopwatch
from efficient_rollout.engine.cpu.draft_attention import AttentionWindow, DraftAttention, DraftRows
from efficient_rollout.engine.cpu.positions import Positions, can_look_ahead
from efficient_rollout.engine.cpu.sampling import DraftSampler, NoiseSampler
from efficient_rollout.engine.drafter_model import LinkReport, build_drafter, sharing_kv_cache
from efficient_rollout.engine.record import Health, Ranks, fault_of
from efficient_rollout.engine.request_word import longest_draft


class SelfDraftProposer(DraftModelProposer):
    """Drafts by the `draft_model` method, with the policy as its own draft model.

    Two things differ from stock. The attention layers are aliases of the policy's, so there is no second KV
    cache, no second prefill, and nothing to keep in step when no drafts are wanted. And the first pass feeds only
    the newly sampled token: the KV of everything before it is the policy's.

    The drafter writes the KV of its drafts into slots the policy overwrites when it verifies them, so the policy
    never attends to a drafter's KV.

    Attributes:
        num_drafted: Draft tokens per request of the last call; 0 where no request can use one, or after a fault. The
            same on every rank, as are the next two.
        drafts: Of each request, where `num_drafted` is not 0.
        drafting: What passes did for them.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        device: torch.device,
        runner: Any,
        packed: PackedWeights,
        health: Health,
        window: AttentionWindow | None,
        noise_sampler: NoiseSampler,
        lookup: Lookup,
    ) -> None:
        super().__init__(vllm_config=vllm_config, device=device, runner=runner)
        self.runner, self._noise_sampler = runner, noise_sampler
        self.packed, self._health, self.window = packed, health, window
        self._max_copies = 0 if lookup == "off" else MOST_COPIES
        self._ended = EndedResponses() if lookup == "group" else None
        self.num_drafted = 0
        self.drafts, self.drafting = DraftTokenIds([], []), DraftCounts()
        self.stopwatch = Stopwatch(device)
        self.links: LinkReport | None = None
        self._ranks = Ranks(packed)
        # The stock runner stops drafting for the whole batch, and schedules zeros, once any request comes near
        # the model's maximum length. Capacity is checked per request here.
        runner.effective_drafter_max_model_len = self.max_model_len + self.num_speculative_tokens + 1

    def _get_model(self) -> torch.nn.Module:
        target = self.runner.get_model()
        # The policy's own: stock reads the checkpoint once more, without `hf_overrides` and `model_impl`.
        config = replace(self._create_draft_vllm_config(), model_config=self.vllm_config.model_config)
        drafter = build_drafter(config, target, self.packed)
        self._twins, self.links = drafter.twins, drafter.links
        return drafter.model

    def sharing_kv_cache(self) -> AbstractContextManager[None]:
        """Have the drafter's layers get the policy's KV cache until the block ends."""
        return sharing_kv_cache(self.vllm_config.compilation_config.static_forward_context, self._twins)

    def initialize_attn_backend(self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None) -> None:
        """Find the drafter's layers in the policy's KV cache."""
        layers = {name: self.vllm_config.compilation_config.static_forward_context[name] for name in self._twins}
        sizes = kernel_block_sizes or [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
        self.attention = DraftAttention(self.runner, layers, kv_cache_config, sizes, self.window)
        # What stock code reads.
        self.draft_attn_groups = [group.stock for group in self.attention.groups]
        self.kv_cache_gid, self.block_size = self.attention.groups[0].cache_group, self.attention.groups[0].block_size

    def propose(  # the stock signature
        self,
        num_speculative_tokens: int,
        target_token_ids: torch.Tensor,
        target_positions: torch.Tensor,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        token_indices_to_sample: torch.Tensor | None,
        common_attn_metadata: CommonAttentionMetadata,
        sampling_metadata: SamplingMetadata,
        mm_embed_inputs: Any = None,
        num_rejected_tokens_gpu: torch.Tensor | None = None,
        slot_mappings: Any = None,
    ) -> torch.Tensor:
        """Draft for the batch; `drafts` holds what was drafted, and stock is given nothing to bring to the scheduler.

        Args:
            num_speculative_tokens: Draft tokens per request; 0 does no drafter work. Fewer are drafted where no
                request may emit so many before its `max_tokens`.
            next_token_ids: [num_requests], the tokens just sampled, whose KV nobody has computed yet.
            common_attn_metadata: Of the pass that sampled them.
            sampling_metadata: Of the batch.
            num_rejected_tokens_gpu: [num_requests] or None, drafts of that pass that were rejected.

        Returns:
            int64 [num_requests, 0].
        """
        num_requests = common_attn_metadata.batch_size()
        none = torch.empty(num_requests, 0, dtype=torch.int64, device=self.device)
        if num_speculative_tokens == 0 or self._health.drafter_fault is not None:
            return none
        # Tokens before the one just sampled, whose KV is the policy's.
        num_computed = common_attn_metadata.seq_lens[:num_requests].long()
        if num_rejected_tokens_gpu is not None:
            num_computed = num_computed - num_rejected_tokens_gpu[:num_requests]
        useful = self._useful_drafts(num_computed)
        num_draft_tokens = min(num_speculative_tokens, max(useful))
        if num_draft_tokens == 0:
            return none
        try:
            with self.stopwatch:
                chains = self._draft(
                    num_draft_tokens, useful, next_token_ids, num_computed, common_attn_metadata, sampling_metadata
                )
        except Exception as error:  # noqa: BLE001 - a drafter's fault must never cost a sample
            self._health.turn_off_drafter(fault_of(error))
            return none
        self.num_drafted, self.drafting = num_draft_tokens, chains.counts
        self.drafts = DraftTokenIds(self.runner.input_batch.req_ids[:num_requests].copy(), chains.drafts)
        return none

    def _useful_drafts(self, num_computed: torch.Tensor) -> list[int]:
        """Count the draft tokens that each request can use; this is the one place where it is asked.

        A request can use none while its prompt is still being computed, and none where a processor cannot be asked what
        comes after a draft. Verifying k emits up to k + 1: so many must be left before `max_tokens`. It may want fewer.
        """
        batch, num_requests, useful = self.runner.input_batch, num_computed.shape[0], []
        if not can_look_ahead(batch):
            return [0] * num_requests
        is_prompt_left, capacity = self.runner.discard_request_mask.np, self.attention.capacity(num_requests)
        for row, (computed, held) in enumerate(zip(num_computed.tolist(), capacity.tolist(), strict=True)):
            if is_prompt_left[row]:
                useful.append(0)
                continue
            parameters = self.runner.requests[batch.req_ids[row]].sampling_params
            num_sampled = computed + 1 - int(batch.num_prompt_tokens[row])
            left = min(max(0, parameters.max_tokens - num_sampled - 1), held - computed)
            useful.append(longest_draft(parameters.extra_args, left))
        return useful

    def _draft(
        self,
        num_draft_tokens: int,
        useful: list[int],
        newest: torch.Tensor,
        num_computed: torch.Tensor,
        metadata: CommonAttentionMetadata,
        sampling: SamplingMetadata,
    ) -> Chains:
        """Draft as many tokens as requests can use of `num_draft_tokens` each; some may get more, for others' less."""
        new_tokens = self._new_tokens(newest, num_computed)
        num_tokens = sum(min(num_draft_tokens, most) for most in useful)
        longest = self.num_speculative_tokens if self._max_copies else num_draft_tokens
        most = [min(longest, most) for most in useful]
        chains = Chains(newest.tolist(), partial(self._text, new_tokens), most, num_tokens, max_copies=self._max_copies)
        outputs = self.runner.input_batch.req_output_token_ids
        sampler = DraftSampler(self.runner.sampler, self._noise_sampler, sampling, new_tokens, outputs)
        self.attention.begin(num_computed, max(most))
        firsts = num_computed.tolist()
        self._ranks.begin()
        while (fed := chains.feed()) is not None:
            positions = [firsts[request] + place for request, place in zip(fed.requests, fed.places, strict=True)]
            hidden_states = self._forward(fed, DraftRows.of(fed.requests, positions, fed.num_rows), metadata)
            logits = self.model.compute_logits(hidden_states)
            draw = partial(self._sample, sampler, sampler.positions(fed, chains.drafts))
            chains.keep(fed, self._ranks.draw(draw, logits).tolist())
        self._ranks.end()
        return chains

    def _new_tokens(self, newest: torch.Tensor, num_computed: torch.Tensor) -> list[list[int]]:
        """Return the tokens that the runner does not know yet: accepted drafts, and the newest."""
        batch = self.runner.input_batch
        num_requests = num_computed.shape[0]
        known = torch.from_numpy(batch.num_tokens_no_spec[:num_requests]).long()
        num_new = (num_computed + 1 - known).tolist()
        drafts = batch.spec_token_ids[:num_requests]
        return [
            [*of_request[: new - 1], token] if new > 0 else []
            for of_request, new, token in zip(drafts, num_new, newest.tolist(), strict=True)
        ]

    def _text(self, new_tokens: list[list[int]], row: int) -> Tokens:
        """Return what a request's copies are taken from: its prompt and response at the end."""
        batch = self.runner.input_batch
        known = batch.token_ids_cpu[row, : batch.num_tokens_no_spec[row]]
        ended = [] if self._ended is None else self._ended.texts(known[: batch.num_prompt_tokens[row]])
        return np.concatenate([*ended, known, np.array(new_tokens[row], dtype=np.int32)])

    def keep_ended(self, request_ids: set[str]) -> None:
        """Keep the responses of requests that have ended, where copies are taken from them."""
        if self._ended is None:
            return
        for request in filter(None, map(self.runner.requests.get, request_ids)):
            if request.prompt_token_ids is not None:
                texts = request.prompt_token_ids, request.output_token_ids
                self._ended.add(*(np.array(tokens, dtype=np.int32) for tokens in texts))

    def _forward(self, fed: Fed, rows: DraftRows, metadata: CommonAttentionMetadata) -> torch.Tensor:
        """Run a pass's rows through the drafter; return hidden states [rows, hidden_size]."""
        num_rows = len(rows.positions)
        self.input_ids[:num_rows] = torch.tensor([token for tokens in fed.tokens for token in tokens])
        self.positions[:num_rows] = rows.positions
        per_layer, slots = self.attention.metadata(metadata, rows)
        with set_forward_context(per_layer, self.vllm_config, num_tokens=num_rows, slot_mapping=slots):
            return self.model(
                input_ids=self.input_ids[:num_rows], positions=self.positions[:num_rows], inputs_embeds=None
            )

    def _sample(self, sampler: DraftSampler, positions: Positions, logits: torch.Tensor) -> torch.Tensor:
        return sampler.draw(positions, logits)
