"""The worker of vLLM's V2 model runner: stock, plus the self-drafter, and a report of what the engine did."""

import logging
from typing import Any

import torch
from vllm.utils.torch_utils import set_random_seed
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_worker import Worker

from efficient_rollout.certificate import certificate_gap, require_certificate
from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import DraftCounts
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.checks import check_drafting_engine
from efficient_rollout.engine.environment import this_machine
from efficient_rollout.engine.gpu.graphs import capture_limit
from efficient_rollout.engine.gpu.speculator import SelfDraftSpeculator
from efficient_rollout.engine.gpu.verifier import SharedNoiseVerifier
from efficient_rollout.engine.graph_cache import name_policy_graph
from efficient_rollout.engine.weights.sync import InPlaceWeightSync
from efficient_rollout.engine.worker import ReportingWorker
from efficient_rollout.sampling.noise import stream_key

logger = logging.getLogger(__name__)

_LOST = "the engine was put to sleep without its weights; the next weight sync brings the drafter's back too"
_LEVEL_THAT_DISCARDS = 2


class _Reported(AsyncModelRunnerOutput):
    """Is an output still on its way from the device; a worker's report of the tick rides on it once it is there."""

    def __init__(
        self, output: AsyncModelRunnerOutput, worker: "V2Worker", num_drafted: int, drafting: DraftCounts | None
    ) -> None:
        self._output, self._worker, self._num_drafted, self._drafting = output, worker, num_drafted, drafting

    def get_output(self) -> ModelRunnerOutput:
        output = self._output.get_output()
        self._worker.report_on(output, self._num_drafted, drafting=self._drafting)
        return self._worker.count(output)


class V2Worker(ReportingWorker):
    """Stands among the bases before one of vLLM's worker classes whose runner is V2."""

    weight_sync = InPlaceWeightSync
    self_drafter: SelfDraftSpeculator | None = None

    def init_device(self) -> None:
        """Check everything, start stock, and put the self-drafter in the place of stock's.

        Raises:
            EfficientRolloutError: Something this package needs is not there; nothing is started then.
        """
        self.begin()
        self.check()
        scheme = make_scheme(self.settings.drafter, "cuda") if self.settings.enabled else None
        name_policy_graph(self.vllm_config, native_products=False)
        super().init_device()
        if scheme is not None:
            packed, looks_up = self.tap_policy(scheme, "in place"), self.settings.drafter.lookup_on("cuda") != "off"
            self.self_drafter = SelfDraftSpeculator(
                self.vllm_config, self.model_runner, packed, self.health, looks_up=looks_up
            )
            self.model_runner.speculator = self.self_drafter

    def check(self) -> None:
        """Refuse an engine that cannot draft here; do nothing where a device has nothing to be checked for."""

    def load_model(self, **kwargs: Any) -> None:
        """Load as stock does, with the drafter; drafts are verified by sampling from then on."""
        super().load_model(**kwargs)
        if self.self_drafter is not None:
            self.model_runner.rejection_sampler = SharedNoiseVerifier(self.model_runner.rejection_sampler)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Run stock, and tell of batches that will run without a graph."""
        super().initialize_from_config(kv_cache_config)
        most = self.vllm_config.compilation_config.max_cudagraph_capture_size
        num_requests = self.vllm_config.scheduler_config.max_num_seqs
        wanted = capture_limit(self.settings.controller.max_draft_tokens, num_requests)
        if self.self_drafter is not None and most and wanted is not None and wanted > most:
            logger.info(
                "batches that verify more than %d tokens run without a CUDA graph, which costs a large policy nothing; "
                "for a small one max_cudagraph_capture_size=%d in compilation_config gives all of them one, for memory "
                "and seconds of capture",
                most,
                wanted,
            )

    def compile_or_warm_up_model(self) -> Any:
        """Run stock, which ends by seeding its generators alike in all engines of a server.

        The runner draws the seeds of requests that bring none from them: without a seed of each engine's own, a prompt
        that two of them get is copied, not answered twice.
        """
        result = super().compile_or_warm_up_model()
        rank = self.vllm_config.parallel_config.data_parallel_index
        if rank > 0:
            set_random_seed(stream_key("engine", self.model_config.seed, rank) >> 32)
        return result

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Run stock with the scheduler's decision; WeightSyncError as `take_in`."""
        if not self.take_in(scheduler_output):
            return None
        if self.self_drafter is not None:
            self.self_drafter.num_draft_tokens = scheduler_output.num_spec_tokens_to_schedule
        return super().execute_model(scheduler_output)

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput | AsyncModelRunnerOutput | None:
        """Run stock; a report rides along."""
        refused = self.take_refused_tick()
        if refused is not None:
            return refused
        output = super().sample_tokens(grammar_output)
        if not isinstance(output, AsyncModelRunnerOutput):
            return output
        if (drafter := self.self_drafter) is None:
            return _Reported(output, self, 0, None)
        return _Reported(output, self, drafter.num_drafted, self.count_drafting(drafter.take_drafting()))

    def sleep(self, level: int = 1) -> None:
        """Run stock; what a level discards, the drafter among it, is not drafted with before the next sync."""
        super().sleep(level)
        if level >= _LEVEL_THAT_DISCARDS:
            self._lose_drafter()

    def discard(self, tags: tuple[str, ...]) -> None:
        """Run stock; do as in a sleep of level 2 where weights are among what is discarded."""
        super().discard(tags)
        if "weights" in tags:
            self._lose_drafter()

    def shutdown(self) -> None:
        """Run stock, and let go of the drafter, and of the policy through it: the next engine needs the memory."""
        super().shutdown()
        runner = getattr(self, "model_runner", None)
        vars(self).pop("load_checkpoint_tensors", None)  # a method of the policy
        if self.self_drafter is not None and runner is not None:
            self.self_drafter.stop_sharing_kv_cache()
            runner.rejection_sampler = None
            self.self_drafter = self.vllm_config.quant_config = None

    def _lose_drafter(self) -> None:
        if self.self_drafter is not None:
            self.health.drafter_fault = _LOST


class GpuWorker(V2Worker, Worker):
    """Is the `worker_cls` of an engine on a GPU, with or without drafting."""

    def look_for_certificate(self, settings: Settings) -> None:
        """Find this machine's certificate; without one, warn, or raise UnsupportedDeviceError, as the settings say."""
        look = require_certificate if settings.gpu_certificate == "required" else certificate_gap
        self.certificate_gap = look(this_machine(), settings.gpu_certificate_path)
        if self.certificate_gap is not None and self.rank == 0:
            logger.warning("this engine drafts without a certificate: %s", self.certificate_gap)

    def check(self) -> None:
        """Check what `engine_args` could not: the engine's options as vLLM has resolved them.

        Raises:
            EfficientRolloutError: As `look_for_certificate` and `check_drafting_engine`.
        """
        if self.settings.enabled:
            self.look_for_certificate(self.settings)
            check_drafting_engine(self.vllm_config, self.settings, "cuda")
