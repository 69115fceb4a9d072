"""Draft with the quantized self, on the policy's own KV cache, in vLLM's V2 model runner.

One captured graph is one draft step: slots, attention metadata, forward pass, draw, advance. A chain of k drafts
replays it k times, so one set of graphs serves every k.
"""

from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, replace
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from efficient_rollout.controller.drafter_health import Health
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.stopwatch import Stopwatch
from efficient_rollout.engine.drafter_model import build_drafter
from efficient_rollout.engine.gpu.graphs import complete
from efficient_rollout.engine.gpu.shared_kv import share_kv_cache
from efficient_rollout.engine.link_report import LinkReport, link_report
from efficient_rollout.engine.ranks import DrafterFault, Ranks, fault_of

try:  # vLLM 0.31
    from vllm.v1.worker.gpu.spec_decode.autoregressive.cudagraph_utils import SpeculatorCudaGraphManager
    from vllm.v1.worker.gpu.spec_decode.draft_model.speculator import PlainDraftModelSpeculator
except ImportError:  # from 0.32 on
    from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import (
        StandaloneARSpeculator as PlainDraftModelSpeculator,
    )
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager

# Where nothing was drafted. What stood there need not be of the vocabulary: stock (0.32) writes -1 behind a chain.
_ANY_TOKEN = 0


class SelfDraftSpeculator(DraftModelSpeculator):
    """Stands in the place of the runner's speculator for `method: draft_model`; the policy is its own draft model.

    The attention layers are aliases of the policy's, so there is no second KV cache, no second prefill, and nothing to
    keep in step when no drafts are wanted. The first step feeds the token just sampled: the KV of everything before it
    is the policy's. Drafts write KV into slots the policy overwrites when it verifies them.

    Args:
        runner: Whose speculator it is.
        packed: The drafter's weights, which the policy's layers lead to.
        health: Of this rank.

    Attributes:
        num_drafts: Draft tokens per request to draft in the tick that runs; the worker sets it.
        chain_length: Those drafted in the last tick.
    """

    def __init__(self, vllm_config: VllmConfig, runner: Any, packed: PackedWeights, health: Health) -> None:
        device = runner.device
        super().__init__(vllm_config, device)
        self._runner = runner
        self.packed, self._health = packed, health
        self._ranks = Ranks(packed, device)
        self.num_drafts = self.chain_length = 0
        self.links: LinkReport | None = None
        self.stopwatch = Stopwatch(device)
        self._graphs: SpeculatorCudaGraphManager | None = None
        self._starts = torch.arange(self.max_num_reqs + 1, dtype=torch.int32, device=device)
        # On the device, so that one graph writes every column of `draft_tokens`.
        self._step = torch.zeros((), dtype=torch.int64, device=device)

    def counts(self) -> dict[str, float]:
        """Return what was counted since `forget_counts`, by names of `RolloutStats`."""
        return {"draft_seconds": self.stopwatch.seconds()}

    def forget_counts(self) -> None:
        """Count from here on."""
        self.stopwatch.reset()

    def load_draft_model(self, target_model: torch.nn.Module, target_attn_layer_names: set[str]) -> torch.nn.Module:
        """Build the drafter, whose attention layers get the policy's KV cache.

        Raises:
            SchemeUnavailableError: A layer could not be quantized.
        """
        parallel = replace(self.speculative_config.draft_parallel_config, rank=self.vllm_config.parallel_config.rank)
        # The policy's own model config: stock's for the drafter is without `hf_overrides` and `model_impl`.
        config = replace(self.vllm_config, quant_config=None, parallel_config=parallel)
        with set_model_tag("draft_model"):
            drafter = build_drafter(config, target_model, self.packed)
        self.links = link_report(drafter.model)
        share_kv_cache(self._runner, self.vllm_config.compilation_config.static_forward_context, drafter.twins)
        return drafter.model

    _run_model = PlainDraftModelSpeculator._run_model

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Prepare full graphs where every attention group can renew its metadata on the device, and none elsewhere.

        The runner has just made its own manager, which is completed here too: also in the trial that measures memory.
        """
        groups = [group for groups in self.attn_groups for group in groups]
        is_full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        can_renew = all(group.supports_draft_decode_metadata_update for group in groups)
        mode = CUDAGraphMode.FULL_DECODE_ONLY if is_full and can_renew else CUDAGraphMode.NONE
        self._graphs = SpeculatorCudaGraphManager(self.vllm_config, self.device, mode, decode_query_len=1)
        complete(self._graphs, is_chain=True)
        complete(self._runner.cudagraph_manager)

    def capture(self) -> None:
        """Capture a draft step for each number of requests. A fault in it turns every rank's drafter off."""
        assert self._graphs is not None
        self.idx_mapping.fill_(-1)
        self._ranks.begin()
        self._graphs.capture(
            self._captured_step,
            self.model_state,
            self.input_buffers,
            self.block_tables,
            self.attn_groups,
            self.kv_cache_config,
            progress_bar_desc="Capturing draft steps",
        )
        try:
            self._ranks.end()
        except DrafterFault as fault:
            self._health.turn_off_drafter(fault_of(fault))

    @torch.inference_mode()
    def propose(  # the stock signature
        self,
        input_batch: InputBatch,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: Any,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        *,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        is_profile: bool = False,
        **_of_other_speculators: Any,
    ) -> torch.Tensor:
        """Draft `num_drafts` tokens for each request of the batch.

        Args:
            input_batch: Of the pass that sampled the newest tokens.
            num_rejected: [num_requests], drafts of that pass that were rejected.
            last_sampled: [max requests], the newest token of each request's state.
            temperature: [max requests], float32.
            seeds: [max requests], int64: a draft is drawn with the noise its position will be verified with.
            dummy_run: Runs for its memory and its kernels, on no request; so a fault raises.

        Returns:
            int64 [num_requests, most drafts]; the first `chain_length` columns are this chain's; others are any tokens.
        """
        num_requests = input_batch.num_reqs
        drafts, self.chain_length = self.draft_tokens[:num_requests], 0
        if not dummy_run and (self.num_drafts == 0 or self._health.drafter_fault is not None):
            return drafts.fill_(_ANY_TOKEN) if self.num_drafts else drafts
        self._copy_request_inputs(num_requests, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        skips_attention = dummy_run and skip_attn_for_dummy_run
        num_steps = max(1, self.num_drafts)
        try:
            with self.stopwatch:
                self._place(input_batch, num_rejected, last_sampled)
                self._draft_chain(num_steps, input_batch, skips_attention, is_eager=is_profile)
        except Exception as error:
            if dummy_run:
                raise
            self._health.turn_off_drafter(fault_of(error))
            return drafts.fill_(_ANY_TOKEN)
        self.chain_length = self.num_drafts
        return drafts

    def _place(self, input_batch: InputBatch, num_rejected: torch.Tensor, last_sampled: torch.Tensor) -> None:
        """Fill the buffers of a chain's first step; on the device, without waiting for it."""
        n, buffers = input_batch.num_reqs, self.input_buffers
        positions = input_batch.seq_lens[:n] - num_rejected[:n]
        buffers.positions[:n] = positions.clamp(max=self.max_model_len - 1)
        buffers.seq_lens[:n] = (positions + 1).clamp(max=self.max_model_len)
        buffers.seq_lens[n:].zero_()
        buffers.query_start_loc[: n + 1] = self._starts[: n + 1]
        buffers.query_start_loc[n + 1 :] = n
        buffers.input_ids[:n] = last_sampled.view(-1)[input_batch.idx_mapping].int()
        self._step.zero_()

    def _draft_chain(self, num_steps: int, input_batch: InputBatch, skips_attention: bool, *, is_eager: bool) -> None:
        n = input_batch.num_reqs
        graph, sync = dispatch_cg_and_sync_dp(
            self._graphs, n, n, uniform_token_count=1, dp_size=self.dp_size, dp_rank=self.dp_rank, need_eager=is_eager
        )
        if graph.cg_mode == CUDAGraphMode.FULL:
            for _ in range(num_steps):
                self._graphs.run_fullgraph(graph)
            return
        self._ranks.begin()
        for step in range(num_steps):
            metadata = by_layer = None
            if not skips_attention:
                by_layer = build_slot_mappings_by_layer(self._slots(n, graph.num_tokens), self.kv_cache_config)
                metadata = self._metadata(graph, input_batch, step)
            across = None if sync is None else sync.num_tokens_across_dp
            self._draft_step(n, graph.num_tokens, metadata, by_layer, across)
        self._ranks.end()

    def _metadata(self, graph: BatchExecutionDescriptor, input_batch: InputBatch, step: int) -> dict[str, Any] | None:
        return self._build_uniform_attn_metadata(
            batch_desc=graph,
            num_reqs=input_batch.num_reqs,
            num_query_per_req=1,
            seq_lens_cpu_upper_bound=input_batch.seq_lens_cpu_upper_bound,
            step=step + 1,
        )

    def _slots(self, num_requests: int, num_tokens: int) -> torch.Tensor:
        buffers = self.input_buffers
        return self.block_tables.compute_slot_mappings(
            self.idx_mapping[:num_requests],
            buffers.query_start_loc[: num_requests + 1],
            buffers.positions[:num_requests],
            num_tokens,
        )

    def _captured_step(
        self,
        num_requests: int,
        num_tokens: int,
        metadata: Any,
        slot_mappings: Any,
        num_tokens_across_dp: torch.Tensor | None,
        mode: CUDAGraphMode,
        num_speculative_steps: int | None = None,
    ) -> None:
        """Do what is captured: every replay renews where KV is written and how attention is planned.

        Args:
            num_requests: Of the graph, with padding.
            num_tokens: The same.
            metadata: By layer; on buffers that stay, as `slot_mappings` is.
            slot_mappings: By layer.
            num_tokens_across_dp: int32 [data parallel size], or None.
            mode: NONE: stock captures with it.
            num_speculative_steps: What a graph of stock's is of; one step has its own number on the device.
        """
        self._slots(num_requests, num_tokens)
        for groups in self.attn_groups:
            for group in groups:
                group.update_draft_decode_metadata(metadata)
        self._draft_step(num_requests, num_tokens, metadata, slot_mappings, num_tokens_across_dp)

    def _draft_step(
        self,
        num_requests: int,
        num_tokens: int,
        metadata: Any,
        slot_mappings: Any,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        """Draft a token per request, and advance; all of it is on the device, at fixed addresses."""
        n, buffers = num_requests, self.input_buffers
        hidden = self._run_model(
            buffers.input_ids[:num_tokens],
            buffers.positions[:num_tokens],
            metadata,
            slot_mappings,
            num_tokens_across_dp,
        )
        tokens = self._ranks.draw(self._draw, self.model.compute_logits(hidden[:n]))
        # Nothing writes what padding attends to. It may be no number, and its token none of the vocabulary's.
        tokens = tokens.masked_fill(self.idx_mapping[:n] < 0, _ANY_TOKEN)
        # An index that is a number, even one on the device, would be read by the host.
        self.draft_tokens[:n].scatter_(1, self._step.expand(n, 1), tokens.view(n, 1))
        buffers.input_ids[:n] = tokens.int()
        buffers.positions[:n] = (buffers.positions[:n] + 1).clamp(max=self.max_model_len - 1)
        lengths = buffers.seq_lens[:n]
        lengths.copy_(torch.where(lengths > 0, (lengths + 1).clamp(max=self.max_model_len), lengths))
        # Warm-ups of a capture count too, and must stay among the columns.
        self._step.add_(1).remainder_(self.num_speculative_steps)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw as the verifier does, with the drafter's logits; of its processing, temperature alone."""
        n = logits.shape[0]
        return gumbel_sample(
            logits,
            self.idx_mapping[:n],
            self.temperature,
            self.seeds,
            self.input_buffers.positions[:n],
            apply_temperature=True,
            is_drafting=False,  # stock gives drafts noise of their own
            use_fp64=self.use_fp64_gumbel,
        )
