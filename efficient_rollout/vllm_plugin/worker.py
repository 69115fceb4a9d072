"""The CPU worker: stock, plus the self-drafter, and a report of what the engine did."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from efficient_rollout import __version__
from efficient_rollout.controller.drafter_health import DrafterReport
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.requantize_evidence import RequantizeEvidence
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.errors import PluginInactiveError, WeightSyncError
from efficient_rollout.metrics.rollout_stats import RolloutStats
from efficient_rollout.vllm_plugin import ledger
from efficient_rollout.vllm_plugin.compat import check_engine, installed_vllm, uses_native_products
from efficient_rollout.vllm_plugin.draft_plan import AttentionWindow
from efficient_rollout.vllm_plugin.engine_args import settings_of
from efficient_rollout.vllm_plugin.graph_cache import name_policy_graph
from efficient_rollout.vllm_plugin.link_report import require_quantized
from efficient_rollout.vllm_plugin.logits_processors import custom_processors_hidden, use_every_processor
from efficient_rollout.vllm_plugin.native_attention import use_native_attention
from efficient_rollout.vllm_plugin.noise_sampler import NoiseSampler, RequestNoise
from efficient_rollout.vllm_plugin.plain_ticks import is_plain, speculation_hidden
from efficient_rollout.vllm_plugin.proposer import SelfDraftProposer
from efficient_rollout.vllm_plugin.refusal import without_tokens
from efficient_rollout.vllm_plugin.register import is_registered
from efficient_rollout.vllm_plugin.scheduler import STATS_ATTRIBUTE
from efficient_rollout.vllm_plugin.tapped_target import TappedTargetConfig
from efficient_rollout.vllm_plugin.verifier import Verifier
from efficient_rollout.vllm_plugin.weight_doors import WeightDoors
from efficient_rollout.vllm_plugin.worker_report import WorkerReport, attach

# As many first tokens as StreamingLLM keeps (arXiv 2309.17453); the engine rounds up to a block of its KV cache.
_SINK_TOKENS = 4


class CpuWorker(WeightDoors, CPUWorker):
    """`worker_cls` of an engine on a CPU, with or without drafting."""

    def init_device(self) -> None:
        """Check everything, then stock, then put the self-drafter in the place of the stock draft model.

        Raises:
            EfficientRolloutError: Something this package needs is not there; nothing is started then.
        """
        if not is_registered():
            raise PluginInactiveError(
                "the entry point vllm.general_plugins of efficient-rollout was not called in this worker. Is "
                "VLLM_PLUGINS set to a list without 'efficient_rollout', or the package not installed there?"
            )
        self.settings = settings_of(self.vllm_config)
        check_engine(self.vllm_config, self.settings)
        ledger.apply()
        self.stats = RolloutStats(num_engines=1)
        self._past_stats = RolloutStats(num_engines=1)
        self._num_stale_drafters = 0
        self.evidence = RequantizeEvidence(self.settings.drafter.requantize_acceptance_drop)
        self._unseen_finished_ids: set[str] = set()
        self._is_plain_tick = False
        self._told_health: DrafterReport | None = None
        self.noise: RequestNoise | None = None
        self.self_drafter: SelfDraftProposer | None = None
        scheme = make_scheme(self.settings.drafter, "cpu") if self.settings.enabled else None
        native_products = self.settings.enabled and uses_native_products(self.settings, self.model_config.dtype)
        if native_products:
            use_native_attention()
        name_policy_graph(self.vllm_config, native_products=native_products)
        with custom_processors_hidden(self.model_config) if self.settings.enabled else nullcontext():
            super().init_device()
        # N-gram lookup too, in the benchmark: vLLM's own rejection sampler is wrong on a CPU.
        noise_sampler = self._share_noise() if self.vllm_config.speculative_config is not None else None
        if scheme is not None:
            assert noise_sampler is not None
            use_every_processor(self.model_runner, self.vllm_config)
            packed = PackedWeights(scheme, quantize_output_head=self.settings.drafter.quantize_output_head)
            self.vllm_config.quant_config = TappedTargetConfig(packed, native_products=native_products)
            window_tokens = self.settings.drafter.attention_window_tokens
            self.self_drafter = SelfDraftProposer(
                packed=packed,
                window=AttentionWindow(window_tokens, _SINK_TOKENS) if window_tokens else None,
                vllm_config=self.vllm_config,
                device=self.device,
                runner=self.model_runner,
                noise_sampler=noise_sampler,
            )
            self.model_runner.drafter = self.self_drafter

    def _share_noise(self) -> NoiseSampler:
        """Every token of a request, drafted, verified or decoded, is drawn with the noise of its position."""
        runner, model_config = self.model_runner, self.model_config
        use_float64 = bool(getattr(model_config, "use_fp64_gumbel", False))
        self.noise = RequestNoise(runner, model_config.seed, use_float64=use_float64)
        noise_sampler = NoiseSampler(self.noise, model_config.logprobs_mode)
        runner.sampler.topk_topp_sampler = noise_sampler
        runner.rejection_sampler = Verifier(runner.sampler, noise_sampler, runner)
        return noise_sampler

    def load_model(self, **kwargs: Any) -> None:
        """Stock, and the drafter with it.

        Raises:
            SchemeUnavailableError: The scheme quantized nothing.
        """
        super().load_model(**kwargs)
        if self.self_drafter is not None:
            assert self.self_drafter.links is not None
            require_quantized(self.self_drafter.links, self.settings.drafter, self.model_config.dtype)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Stock, which is told that the drafter's layers have none of their own."""
        if self.self_drafter is None:
            return super().get_kv_cache_spec()
        with self.self_drafter.sharing_kv_cache():
            return super().get_kv_cache_spec()

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Stock, with the scheduler's statistics taken in.

        Raises:
            WeightSyncError: The weights are no policy's, and the scheduler is stock, which cannot be told so.
        """
        tick_stats = getattr(scheduler_output, STATS_ATTRIBUTE, None)
        if tick_stats is not None:
            self.stats = RolloutStats.merge([self.stats, tick_stats])
            if tick_stats.num_ticks:
                self._num_stale_drafters = tick_stats.num_stale_drafters
            self.evidence.observe(sum(tick_stats.drafted_per_position[:1]), sum(tick_stats.accepted_per_position[:1]))
        if self.weights_fault is not None and scheduler_output.total_num_scheduled_tokens:
            return self._refuse(scheduler_output, self.weights_fault)
        if self._unseen_finished_ids:
            scheduler_output.finished_req_ids |= self._unseen_finished_ids
            self._unseen_finished_ids = set()
        stock_scheduler = not self.settings.enabled
        if stock_scheduler and scheduler_output.total_num_scheduled_tokens:
            self.stats.num_ticks += 1
        if self.noise is not None:
            self.noise.forget(scheduler_output.finished_req_ids)
        self._is_plain_tick = is_plain(scheduler_output)
        with self._speculating_where_asked():
            return self._count(super().execute_model(scheduler_output), stock_scheduler)

    def _speculating_where_asked(self) -> AbstractContextManager[None]:
        is_hidden = self.self_drafter is not None and self._is_plain_tick
        return speculation_hidden(self.model_runner) if is_hidden else nullcontext()

    def _refuse(self, scheduler_output: SchedulerOutput, fault: str) -> ModelRunnerOutput:
        if not self.settings.enabled:
            raise WeightSyncError(f"the engine refuses to generate: {fault}")
        # The runner hears later of requests that ended before this tick, which it does not see.
        self._unseen_finished_ids |= scheduler_output.finished_req_ids
        output = without_tokens(scheduler_output)
        self._report_on(output)
        return output

    def _report_on(self, output: ModelRunnerOutput, chain_length: int = 0, drafts: DraftTokenIds | None = None) -> None:
        health = self.drafter_report()
        if chain_length or health != self._told_health:
            attach(output, WorkerReport(health, chain_length, drafts))
            # A fault of the weights is told with every tick that it refuses.
            self._told_health = None if health.weights_fault is not None else health

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | None:
        """Stock; a report rides along, and an engine with the stock scheduler has its tokens counted."""
        drafter = self.self_drafter
        if drafter is not None:
            drafter.chain_length = 0  # stock may not ask it
        with self._no_noise_for_unfinished_prompts(), self._speculating_where_asked():
            output = super().sample_tokens(grammar_output)
        if drafter is not None and isinstance(output, ModelRunnerOutput):
            drafts = self.model_runner.take_draft_token_ids() if drafter.chain_length else None
            usable = None if drafts is None else drafter.usable(drafts)
            self._report_on(output, drafter.chain_length, usable)
        return self._count(output, not self.settings.enabled)

    def drafter_report(self) -> DrafterReport:
        """How the weights and the drafter are, on this rank."""
        fault = None if self.self_drafter is None else self.self_drafter.fault
        return DrafterReport(self.weights_version, self.weights_fault, fault)

    def take_report_of_all_ranks(self, report: DrafterReport) -> None:
        """Stop where another rank of the engine must: ranks generate, and draft, together or not at all."""
        self.weights_version, self.weights_fault = report.weights_version, report.weights_fault
        drafter = self.self_drafter
        if drafter is not None and drafter.fault is None and report.drafter_fault is not None:
            drafter.turn_off(report.drafter_fault)
            # Whatever the evidence says, the next weight sync mends every rank's part of the drafter.
            drafter.packed.fault = report.drafter_fault

    @contextmanager
    def _no_noise_for_unfinished_prompts(self) -> Iterator[None]:
        """A request's own generator stands still while its prompt is computed in chunks.

        vLLM draws a token after every chunk, throws it away, and winds the generator back, which it can do with a
        generator on a GPU only: on a CPU the engine would end there.
        """
        batch = self.model_runner.input_batch
        if not batch.generators:
            yield
            return
        unfinished = self.model_runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        held = {row: batch.generators.pop(row) for row in unfinished if row in batch.generators}
        try:
            yield
        finally:
            batch.generators.update(held)

    def _count(self, output: ModelRunnerOutput | None, stock_scheduler: bool) -> ModelRunnerOutput | None:
        if stock_scheduler and isinstance(output, ModelRunnerOutput):
            self.stats.num_generated_tokens += sum(len(tokens) for tokens in output.sampled_token_ids)
        return output

    def repeat(self, mark: str) -> str:
        """Answer so; the executor reads answers up to this one."""
        return mark

    def wants_requantizing(self) -> bool:
        """At a weight sync, once: whether the drafter is to take the new weights."""
        return self.evidence.asks() or self.settings.drafter.requantize == "every_sync"

    def take_rollout_stats(self) -> dict[str, Any]:
        """Counts since the last call, as `RolloutStats.to_dict()`."""
        stats = self._untaken_stats()
        self._past_stats = self._past_stats.followed_by(stats)
        self.stats = RolloutStats(num_engines=1)
        if self.self_drafter is not None:
            self.self_drafter.draft_seconds, self.self_drafter.num_faults = 0.0, 0
        return stats.to_dict()

    def rollout_totals(self) -> dict[str, Any]:
        """Counts since the engine started, as `RolloutStats.to_dict()`; takes nothing."""
        total = self._past_stats.followed_by(self._untaken_stats())
        return replace(total, num_stale_drafters=self._num_stale_drafters).to_dict()

    def _untaken_stats(self) -> RolloutStats:
        drafter = self.self_drafter
        if drafter is None:
            return self.stats
        return replace(
            self.stats,
            draft_seconds=drafter.draft_seconds,
            num_drafter_faults=drafter.num_faults,
            drafter_bytes=drafter.packed.num_bytes,
            packed_weight_share=drafter.links.packed_weight_share if drafter.links else None,
        )

    def plugin_status(self) -> dict[str, Any]:
        """What is active in this worker, for a check before the first rollout."""
        name, version = installed_vllm()
        links = self.self_drafter.links if self.self_drafter else None
        return {
            "process_id": os.getpid(),
            "efficient_rollout": __version__,
            name: version,
            "enabled": self.settings.enabled,
            "scheme": self.settings.drafter.scheme if self.settings.enabled else None,
            "packed_layers": links.num_packed if links else 0,
            "unquantized_layers": links.num_unquantized if links else 0,
            "packed_weight_share": links.packed_weight_share if links else None,
            "drafter_fault": self.self_drafter.fault if self.self_drafter else None,
            "weights_version": self.weights_version,
            "weights_fault": self.weights_fault,
            "patches": {row["name"]: row["state"] for row in ledger.status()},
        }
