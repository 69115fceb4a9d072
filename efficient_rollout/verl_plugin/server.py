"""veRL's vLLM server, with this package's engine arguments and a record of what the engine did."""

import argparse
import json
import os
from typing import Any

from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

from efficient_rollout.engine.engine_args import EXECUTOR, engine_args
from efficient_rollout.engine.prometheus import MIDDLEWARE
from efficient_rollout.engine.statistics import SegmentRecorder, call_every_engine
from efficient_rollout.errors import ConfigError
from efficient_rollout.own_logs import keep_own_warnings
from efficient_rollout.patching import unfit
from efficient_rollout.sampling.noise import request_seed, tokens_digest
from efficient_rollout.verl_plugin.adapter import unique_job_id
from efficient_rollout.verl_plugin.ledger import plugin_status
from efficient_rollout.verl_plugin.settings import SETTINGS_PATH, rollout_settings

_MERGED = "additional_config"


class EfficientServer(vLLMHttpServer):
    """Is one replica's server on one node."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        keep_own_warnings()
        self._record = SegmentRecorder()
        super().__init__(*args, **kwargs)
        self._settings = rollout_settings(self.config.custom)
        # veRL's own, for the engine workers that this process starts.
        os.environ["VERL_RAY_JOB_ID"] = unique_job_id()

    def _get_worker_extension_cls(self) -> str:
        return "efficient_rollout.verl_plugin.worker_extension.EfficientWorkerExtension"

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        """Add our engine arguments; what the user set by the same name is an error, not overwritten."""
        super()._preprocess_engine_kwargs(engine_kwargs)
        same_name = ("dtype", "enforce_eager", "data_parallel_size", "load_format")
        options = {
            **{name: self.config[name] for name in same_name},
            "tensor_parallel_size": self.config.tensor_model_parallel_size,
            "trust_remote_code": self.model_config.trust_remote_code,
        }
        # `efficient-rollout train` has measured a latency profile already; veRL's own entry point, or another node,
        # has not: then it is measured here.
        ours = engine_args(self.model_config.local_path, self._settings, **options | engine_kwargs)
        theirs = engine_kwargs.pop(_MERGED, None) or {}
        if both := sorted(ours.keys() & engine_kwargs.keys()):
            raise ConfigError(
                f"rollout.engine_kwargs.vllm sets {', '.join(both)}, which this package sets itself: remove them, "
                f"or disable the package's drafting with {SETTINGS_PATH}.enabled=false and rollout.name=vllm."
            )
        ours[_MERGED] = (json.loads(theirs) if isinstance(theirs, str) else dict(theirs)) | ours[_MERGED]
        if "distributed_executor_backend" in ours:
            # As veRL has it: every worker in a process of its own.
            ours["distributed_executor_backend"] = EXECUTOR
        engine_kwargs.update(ours)

    async def run_server(self, args: argparse.Namespace) -> None:
        """Do as stock does, with this package's counters on the server's `/metrics`."""
        args.middleware = [*args.middleware, MIDDLEWARE]
        await super().run_server(args)

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], *args: Any, **kwargs: Any
    ) -> TokenOutput:
        """Generate as stock does, inside the clock of the rollout."""
        if self._settings.rollout_seed is not None and "seed" in sampling_params:
            # What is left of a request that was stopped comes with its seed again, and must not have its noise again.
            seed = request_seed(sampling_params["seed"], tokens_digest(prompt_ids))
            sampling_params = {**sampling_params, "seed": seed}
        self._record.request_came()
        output = await super().generate(prompt_ids, sampling_params, *args, **kwargs)
        self._record.response_went()
        return output

    async def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> None:
        """Call every worker as stock does; a weight sync closes the running segment first."""
        if method == "update_weights_from_ipc":
            await self._record.close(self.engine)
        await super().collective_rpc(method, *args, **kwargs)

    async def take_segments(self) -> list[list[dict[str, Any]]]:
        """Return what each engine did since the last call, a segment for each weight sync and one since the last."""
        return await self._record.take(self.engine)

    async def plugin_statuses(self) -> dict[str, dict[str, Any]]:
        """Return the state of the plugins in this process and in every engine worker."""
        engines = await call_every_engine(self.engine, "plugin_status") if self.node_rank == 0 else []
        statuses = {"server": plugin_status()}
        for number, workers in enumerate(engines):
            for rank, status in enumerate(workers):
                active = status["drafter_fault"] is None and not unfit(status["patches"])
                statuses[f"engine {number}, worker {rank}"] = {"active": active, **status}
        return statuses
