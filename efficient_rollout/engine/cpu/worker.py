"""The CPU worker: stock, plus the self-drafter, and a report of what the engine did."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.checks import check_engine
from efficient_rollout.engine.cpu.draft_attention import AttentionWindow
from efficient_rollout.engine.cpu.native_attention import use_native_attention
from efficient_rollout.engine.cpu.positions import custom_processors_hidden, use_every_processor
from efficient_rollout.engine.cpu.proposer import SelfDraftProposer
from efficient_rollout.engine.cpu.sampling import NoiseSampler, RequestNoise, Verifier
from efficient_rollout.engine.environment import uses_native_products
from efficient_rollout.engine.graph_cache import name_policy_graph
from efficient_rollout.engine.worker import ReportingWorker

# As many first tokens as StreamingLLM keeps (arXiv 2309.17453); the engine rounds up to a block of its KV cache.
_SINK_TOKENS = 4


class CpuWorker(ReportingWorker, CPUWorker):
    """Is the `worker_cls` of an engine on a CPU, with or without drafting."""

    noise: RequestNoise | None = None
    _is_plain_tick = False

    def init_device(self) -> None:
        """Check everything, start stock, and put the self-drafter in the place of the stock draft model.

        Raises:
            EfficientRolloutError: Something this package needs is not there; nothing is started then.
        """
        self.begin()
        check_engine(self.vllm_config, self.settings)
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
            window_tokens = self.settings.drafter.attention_window_tokens
            self.self_drafter = SelfDraftProposer(
                packed=self.tap_policy(scheme, "native" if native_products else "stock"),
                health=self.health,
                window=AttentionWindow(window_tokens, _SINK_TOKENS) if window_tokens else None,
                vllm_config=self.vllm_config,
                device=self.device,
                runner=self.model_runner,
                noise_sampler=noise_sampler,
                lookup=self.settings.drafter.lookup_on("cpu"),
            )
            self.model_runner.drafter = self.self_drafter

    def _share_noise(self) -> NoiseSampler:
        """Draw every token of a request, drafted, verified or decoded, with the noise of its position."""
        runner, model_config = self.model_runner, self.model_config
        use_float64 = bool(getattr(model_config, "use_fp64_gumbel", False))
        rank = self.vllm_config.parallel_config.data_parallel_index
        self.noise = RequestNoise(runner, model_config.seed, rank=rank, use_float64=use_float64)
        noise_sampler = NoiseSampler(self.noise, model_config.logprobs_mode)
        runner.sampler.topk_topp_sampler = noise_sampler
        runner.rejection_sampler = Verifier(runner.sampler, noise_sampler, runner)
        return noise_sampler

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Return stock's specification; stock is told that the drafter's layers have none of their own."""
        if self.self_drafter is None:
            return super().get_kv_cache_spec()
        with self.self_drafter.sharing_kv_cache():
            return super().get_kv_cache_spec()

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run stock, unless the weights are no policy's; WeightSyncError as `take_in`."""
        if not self.take_in(scheduler_output):
            return None
        if self.noise is not None:
            self.noise.forget(scheduler_output.finished_req_ids)
        if self.self_drafter is not None:
            self.self_drafter.keep_ended(scheduler_output.finished_req_ids)
        # It verifies no drafts and is not asked for any.
        self._is_plain_tick = not (
            scheduler_output.num_spec_tokens_to_schedule or scheduler_output.scheduled_spec_decode_tokens
        )
        with self._speculating_where_asked():
            return self.count(super().execute_model(scheduler_output))

    @contextmanager
    def _speculating_where_asked(self) -> Iterator[None]:
        """Have the stock runner take its path without speculation in a plain tick, in both of its calls.

        With speculation, the runner lays out inputs for a drafter and reads sampled tokens back for one, whether or not
        any draft is wanted.
        """
        runner, speculation = self.model_runner, self.model_runner.speculative_config
        if self.self_drafter is not None and self._is_plain_tick:
            runner.speculative_config = None
        try:
            yield
        finally:
            runner.speculative_config = speculation

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | None:
        """Run stock; a report rides along."""
        refused = self.take_refused_tick()
        if refused is not None:
            return refused
        drafter = self.self_drafter
        if drafter is not None:
            drafter.num_drafted = 0  # stock may not ask it
        with self._no_noise_for_unfinished_prompts(), self._speculating_where_asked():
            output = super().sample_tokens(grammar_output)
        if drafter is not None and isinstance(output, ModelRunnerOutput):
            if drafter.num_drafted:
                self.report_on(output, drafter.num_drafted, drafter.drafts, self.count_drafting(drafter.drafting))
            else:
                self.report_on(output)
        return self.count(output)

    @contextmanager
    def _no_noise_for_unfinished_prompts(self) -> Iterator[None]:
        """Keep a request's own generator still while its prompt is computed in chunks.

        vLLM draws a token after every chunk, throws it away, and winds the generator back, which it can do with a
        generator on a GPU only: on a CPU the engine would end there.
        """
        batch = self.model_runner.input_batch
        unfinished = self.model_runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        held = {row: batch.generators.pop(row) for row in unfinished if row in batch.generators}
        try:
            yield
        finally:
            batch.generators.update(held)
