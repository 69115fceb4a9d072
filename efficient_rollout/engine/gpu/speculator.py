"""Draft with the quantized self, on the policy's own KV cache, in vLLM's V2 model runner.

One captured graph is one draft step: slots, attention metadata, forward pass, draws, advance. A chain replays it as
often as it needs passes, so one set of graphs serves every number of drafts.
"""

from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, replace
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.stopwatch import Stopwatch
from efficient_rollout.engine.drafter_model import LinkReport, build_drafter, sharing_kv_cache
from efficient_rollout.engine.gpu.chain import ANY_TOKEN, steps_of
from efficient_rollout.engine.gpu.graphs import complete
from efficient_rollout.engine.record import DrafterFault, Health, Ranks, fault_of

try:  # vLLM 0.31
    from vllm.v1.worker.gpu.spec_decode.autoregressive.cudagraph_utils import SpeculatorCudaGraphManager
    from vllm.v1.worker.gpu.spec_decode.draft_model.speculator import PlainDraftModelSpeculator
except ImportError:  # from 0.32 on
    from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import (
        StandaloneARSpeculator as PlainDraftModelSpeculator,
    )
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager


# Methods of the runner that collect what KV cache to allocate, and that allocate and bind it.
_COLLECTING = ("get_kv_cache_spec", "initialize_kv_cache")


class SelfDraftSpeculator(DraftModelSpeculator):
    """Stands in the place of the runner's speculator for `method: draft_model`; the policy is its own draft model.

    The attention layers are aliases of the policy's, so there is no second KV cache, no second prefill, and nothing to
    keep in step when no drafts are wanted. The first step feeds the token just sampled: the KV of everything before it
    is the policy's. Drafts write KV into slots the policy overwrites when it verifies them.

    Args:
        packed: The drafter's weights, which the policy's layers lead to.
        looks_up: Whether draft passes check copies of requests' own text.

    Attributes:
        num_draft_tokens: Draft tokens per request to draft in the tick that runs; the worker sets it.
        num_drafted: Those drafted in the last tick.
        steps: What the passes of the chain that runs do.
        most_rows: Rows of a request in a pass that looks copies up; 1 where none does.
        drafting: What passes did since it was taken.

    Raises:
        UnsupportedModelError: Copies are to be looked up in an engine whose passes are those of several.
    """

    def __init__(
        self, vllm_config: VllmConfig, runner: Any, packed: PackedWeights, health: Health, *, looks_up: bool = False
    ) -> None:
        device = runner.device
        super().__init__(vllm_config, device)
        self.runner = runner
        self.packed, self._health = packed, health
        self.ranks = Ranks(packed, device)
        self.num_draft_tokens = self.num_drafted = 0
        self.links: LinkReport | None = None
        self.stopwatch = Stopwatch(device)
        self._graphs: SpeculatorCudaGraphManager | None = None
        self._plain, self._widest = steps_of(self, looks_up=looks_up)
        self.steps, self.most_rows = self._plain, self._widest.num_rows
        self.drafting = DraftCounts()

    def take_drafting(self) -> DraftCounts:
        """Return what passes did since the last call, as far as it is known; nothing is waited for."""
        counts, self.drafting = self.drafting, DraftCounts()
        return counts

    def load_draft_model(self, target_model: torch.nn.Module, target_attn_layer_names: set[str]) -> torch.nn.Module:
        """Build the drafter, whose attention layers get the policy's KV cache; errors are those of `build_drafter`."""
        parallel = replace(self.speculative_config.draft_parallel_config, rank=self.vllm_config.parallel_config.rank)
        # The policy's own model config: stock's for the drafter is without `hf_overrides` and `model_impl`.
        config = replace(self.vllm_config, quant_config=None, parallel_config=parallel)
        with set_model_tag("draft_model"):
            drafter = build_drafter(config, target_model, self.packed)
        self.links = drafter.links
        sharing = sharing_kv_cache(self.vllm_config.compilation_config.static_forward_context, drafter.twins)
        for name in _COLLECTING:
            setattr(self.runner, name, sharing(getattr(self.runner, name)))
        return drafter.model

    def stop_sharing_kv_cache(self) -> None:
        """Leave the runner its own methods: what they were replaced by holds the layers."""
        for name in _COLLECTING:
            vars(self.runner).pop(name, None)

    _run_model = PlainDraftModelSpeculator._run_model

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Prepare full graphs where every attention group can renew its metadata on the device, and none elsewhere.

        The runner has just made its own manager, which is completed here too: also in the trial that measures memory.
        """
        groups = [group for groups in self.attn_groups for group in groups]
        is_full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        can_renew = all(group.supports_draft_decode_metadata_update for group in groups)
        mode = CUDAGraphMode.FULL_DECODE_ONLY if is_full and can_renew else CUDAGraphMode.NONE
        self._graphs = SpeculatorCudaGraphManager(self.vllm_config, self.device, mode, decode_query_len=self.most_rows)
        complete(self._graphs, is_chain=True)
        complete(self.runner.cudagraph_manager)

    def capture(self) -> None:
        """Capture a draft step for each number of requests. A fault in it turns every rank's drafter off."""
        assert self._graphs is not None
        self.idx_mapping.fill_(-1)
        self._widest.forget()
        self.ranks.begin()
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
            self.ranks.end()
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
        """Draft `num_draft_tokens` tokens for each request of the batch.

        Args:
            num_rejected: [num_requests], drafts that the pass which sampled the newest tokens has rejected.
            last_sampled: [max requests], the newest token of each request's state.
            temperature: [max requests], float32. A draft is drawn with it and `seeds`, as its position is verified.
            dummy_run: Runs for its memory and its kernels, on no request; so a fault raises.

        Returns:
            int64 [num_requests, most drafts]; the first `num_drafted` columns are this chain's; others are any tokens.
        """
        num_requests, self.num_drafted = input_batch.num_reqs, 0
        drafts = self.draft_tokens[:num_requests]
        if not dummy_run and (self.num_draft_tokens == 0 or self._health.drafter_fault is not None):
            return drafts.fill_(ANY_TOKEN) if self.num_draft_tokens else drafts
        self._copy_request_inputs(num_requests, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        self.steps = self._widest if self._widest.fits(num_requests) else self._plain
        num_passes = self.num_draft_tokens if dummy_run else self.steps.num_passes(self.num_draft_tokens)
        try:
            with self.stopwatch:
                self.steps.begin(input_batch, num_rejected, last_sampled)
                self._run(max(1, num_passes), input_batch, dummy_run and skip_attn_for_dummy_run, is_eager=is_profile)
            self.steps.end(num_requests, 0 if dummy_run else num_passes)
        except Exception as error:
            if dummy_run:
                raise
            self.steps.forget_copies()
            self._health.turn_off_drafter(fault_of(error))
            return drafts.fill_(ANY_TOKEN)
        self.num_drafted = self.num_draft_tokens
        return drafts

    def _run(self, num_passes: int, input_batch: InputBatch, skips_attention: bool, *, is_eager: bool) -> None:
        steps, n = self.steps, input_batch.num_reqs
        graph, sync = dispatch_cg_and_sync_dp(
            self._graphs,
            n,
            n * steps.num_rows,
            uniform_token_count=steps.num_rows,
            dp_size=self.dp_size,
            dp_rank=self.dp_rank,
            need_eager=is_eager,
        )
        if graph.cg_mode == CUDAGraphMode.FULL:
            for _ in range(num_passes):
                self._graphs.run_fullgraph(graph)
            return
        self.ranks.begin()
        for step in range(num_passes):
            metadata = by_layer = None
            if not skips_attention:
                by_layer = build_slot_mappings_by_layer(steps.slots(n, graph.num_tokens), self.kv_cache_config)
                metadata = self._build_uniform_attn_metadata(
                    batch_desc=graph,
                    num_reqs=n,
                    num_query_per_req=steps.num_rows,
                    seq_lens_cpu_upper_bound=input_batch.seq_lens_cpu_upper_bound,
                    step=steps.longest(step),
                )
            across = None if sync is None else sync.num_tokens_across_dp
            steps.step(n, graph.num_tokens, metadata, by_layer, across)
        self.ranks.end()

    def _captured_step(
        self, num_requests: int, num_tokens: int, metadata: Any, slot_mappings: Any, num_tokens_across_dp: Any,
        mode: CUDAGraphMode, num_speculative_steps: int | None = None,
    ) -> None:  # fmt: skip
        """Do what is captured, in mode NONE: each replay renews slots and how attention is planned, and steps."""
        self.steps = self._plain if num_tokens == num_requests else self._widest
        self.steps.slots(num_requests, num_tokens)
        for groups in self.attn_groups:
            for group in groups:
                group.update_draft_decode_metadata(metadata)
        self.steps.step(num_requests, num_tokens, metadata, slot_mappings, num_tokens_across_dp)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw as the verifier does, with the drafter's logits; of its processing, temperature alone."""
        n = logits.shape[0]
        return gumbel_sample(
            logits,
            self.steps.states_of_rows(n),
            self.temperature,
            self.seeds,
            self.input_buffers.positions[:n],
            apply_temperature=True,
            is_drafting=False,  # stock gives drafts noise of their own
            use_fp64=self.use_fp64_gumbel,
        )
