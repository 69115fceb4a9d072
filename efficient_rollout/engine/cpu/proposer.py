"""Draft with the quantized self, on the policy's own KV cache."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from efficient_rollout.controller.drafter_health import Health
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.engine.cpu.draft_attention import AttentionWindow, DraftAttention, DraftPlan, drafts_left
from efficient_rollout.engine.cpu.logits_processors import can_look_ahead
from efficient_rollout.engine.cpu.sampling import DraftSampler, NoiseSampler
from efficient_rollout.engine.drafter_model import build_drafter
from efficient_rollout.engine.link_report import LinkReport, link_report
from efficient_rollout.engine.ranks import Ranks, fault_of


def _num_computed(metadata: CommonAttentionMetadata, num_rejected: torch.Tensor | None) -> torch.Tensor:
    """Count tokens before the one just sampled, whose KV is the policy's: int64 [num_requests]."""
    num_requests = metadata.batch_size()
    num_computed = metadata.seq_lens[:num_requests].long()
    return num_computed if num_rejected is None else num_computed - num_rejected[:num_requests]


class SelfDraftProposer(DraftModelProposer):
    """Drafts by the `draft_model` method, with the policy as its own draft model.

    Two things differ from stock. The attention layers are aliases of the policy's, so there is no second KV
    cache, no second prefill, and nothing to keep in step when no drafts are wanted. And the first pass feeds only
    the newly sampled token: the KV of everything before it is the policy's.

    The drafter writes the KV of its drafts into slots the policy overwrites when it verifies them, so the policy
    never attends to a drafter's KV.
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
    ) -> None:
        super().__init__(vllm_config=vllm_config, device=device, runner=runner)
        self.runner = runner
        self._noise_sampler = noise_sampler
        self.packed, self._health = packed, health
        self.window = window
        self.chain_length = 0
        self._useful: list[int] = []
        self.draft_seconds = 0.0
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
        self._twins = drafter.twins
        self.links = link_report(drafter.model)
        return drafter.model

    @contextmanager
    def sharing_kv_cache(self) -> Iterator[None]:
        """Have layers that name another's cache get its tensor, while vLLM collects what to allocate.

        Nothing is allocated for them. It lasts no longer than that: such a layer writes no KV, and code compiled from
        it never would.
        """
        layers = self.vllm_config.compilation_config.static_forward_context
        for name, twin in self._twins.items():
            layers[name].kv_sharing_target_layer_name = twin.layer_name
        try:
            yield
        finally:
            for name in self._twins:
                layers[name].kv_sharing_target_layer_name = None

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
        """Draft up to `num_speculative_tokens` for each request of the batch.

        Args:
            num_speculative_tokens: Draft tokens per request; 0 does no drafter work. Fewer are drafted where no
                request may emit so many before its `max_tokens`.
            next_token_ids: [num_requests], the tokens just sampled, whose KV nobody has computed yet.
            common_attn_metadata: Of the pass that sampled them.
            sampling_metadata: Of the batch.
            num_rejected_tokens_gpu: [num_requests] or None, drafts of that pass that were rejected.

        Returns:
            int64 [num_requests, chain_length], which is 0 where no request can use a draft, or after a fault;
            the same on every rank.
        """
        num_requests = common_attn_metadata.batch_size()
        none = torch.empty(num_requests, 0, dtype=torch.int64, device=self.device)
        if num_speculative_tokens == 0 or self._health.drafter_fault is not None:
            return none
        started = time.perf_counter()
        num_computed = _num_computed(common_attn_metadata, num_rejected_tokens_gpu)
        self._useful = self._useful_drafts(num_computed)
        chain_length = min(num_speculative_tokens, max(self._useful))
        if chain_length == 0:
            return none
        try:
            drafts = self._draft_chain(
                chain_length, next_token_ids, num_computed, common_attn_metadata, sampling_metadata
            )
        except Exception as error:  # noqa: BLE001 - a drafter's fault must never cost a sample
            self._health.turn_off_drafter(fault_of(error))
            return none
        finally:
            self.draft_seconds += time.perf_counter() - started
        self.chain_length = chain_length
        return drafts

    def usable(self, drafts: DraftTokenIds) -> DraftTokenIds:
        """Return the last chain's drafts, each request's cut to those it can use."""
        cut = [tokens[:most] for tokens, most in zip(drafts.draft_token_ids, self._useful, strict=True)]
        return DraftTokenIds(drafts.req_ids, cut)

    def forget_counts(self) -> None:
        """Count from here on."""
        self.draft_seconds = 0.0

    def _useful_drafts(self, num_computed: torch.Tensor) -> list[int]:
        """Count the draft tokens that each request can use; this is the one place where it is asked.

        A request can use none while its prompt is still being computed, and none where a processor cannot be asked what
        comes after a draft. Verifying k emits up to k + 1: so many must be left before `max_tokens`.

        Args:
            num_computed: int64 [num_requests], tokens before the one just sampled.
        """
        batch = self.runner.input_batch
        is_prompt_left = self.runner.discard_request_mask.np
        if not can_look_ahead(batch):
            return [0] * num_computed.shape[0]
        useful = []
        for row, computed in enumerate(num_computed.tolist()):
            if is_prompt_left[row]:
                useful.append(0)
                continue
            parameters = self.runner.requests[batch.req_ids[row]].sampling_params
            num_sampled = computed + 1 - int(batch.num_prompt_tokens[row])
            useful.append(drafts_left(parameters.max_tokens - num_sampled))
        return useful

    def _draft_chain(
        self,
        chain_length: int,
        next_token_ids: torch.Tensor,
        num_computed: torch.Tensor,
        metadata: CommonAttentionMetadata,
        sampling: SamplingMetadata,
    ) -> torch.Tensor:
        """Return drafts, int64 [num_requests, chain_length]."""
        num_requests = num_computed.shape[0]
        plans = self.attention.plan(chain_length, num_computed)
        metadata.num_actual_tokens = num_requests
        metadata.max_query_len = 1
        metadata.query_start_loc = self.arange[: num_requests + 1]
        metadata.query_start_loc_cpu = torch.from_numpy(self.token_arange_np[: num_requests + 1])
        sampler = self._draft_sampler(next_token_ids, num_computed, sampling)
        tokens, drafts = next_token_ids, []
        self._ranks.begin()
        for step in range(chain_length):
            hidden_states = self._forward(tokens, plans, step, metadata)
            logits = self.model.compute_logits(hidden_states)
            tokens = self._ranks.draw(partial(self._sample, sampler), logits)
            drafts.append(tokens)
        self._ranks.end()
        return torch.stack(drafts, dim=1)

    def _draft_sampler(
        self, newest: torch.Tensor, num_computed: torch.Tensor, sampling: SamplingMetadata
    ) -> DraftSampler:
        """Make the sampler of a chain behind these tokens.

        The runner may not know them yet, nor the accepted drafts before them.
        """
        batch = self.runner.input_batch
        num_requests = num_computed.shape[0]
        known = torch.from_numpy(batch.num_tokens_no_spec[:num_requests]).long()
        num_new = (num_computed + 1 - known).tolist()
        drafts = batch.spec_token_ids[:num_requests]
        new_tokens = [
            [*of_request[: new - 1], token] if new > 0 else []
            for of_request, new, token in zip(drafts, num_new, newest.tolist(), strict=True)
        ]
        outputs = batch.req_output_token_ids
        return DraftSampler(self.runner.sampler, self._noise_sampler, sampling, new_tokens, outputs)

    def _forward(
        self, tokens: torch.Tensor, plans: list[DraftPlan], step: int, metadata: CommonAttentionMetadata
    ) -> torch.Tensor:
        """Run one token per request through the drafter; return hidden states [num_requests, hidden_size]."""
        num_requests = tokens.shape[0]
        self.input_ids[:num_requests] = tokens
        self.positions[:num_requests] = plans[0].positions[step]
        per_layer, slots = self.attention.metadata(metadata, plans, step)
        with set_forward_context(per_layer, self.vllm_config, num_tokens=num_requests, slot_mapping=slots):
            return self.model(
                input_ids=self.input_ids[:num_requests], positions=self.positions[:num_requests], inputs_embeds=None
            )

    def _sample(self, sampler: DraftSampler, logits: torch.Tensor) -> torch.Tensor:
        return sampler.draw(logits)
