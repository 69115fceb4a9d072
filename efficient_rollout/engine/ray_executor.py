"""The stock executor whose workers are Ray's actors, for frameworks that give an engine its GPUs through Ray."""

from vllm.v1.executor.ray_executor_v2 import RayExecutorV2

from efficient_rollout.engine.executor import OfRanks


class RayExecutor(OfRanks, RayExecutorV2):
    """Runs every worker in an actor of Ray's, on one machine or several."""

    def _init_executor(self) -> None:
        # A worker asks for stock's name: under any other it counts the GPUs of one machine alone.
        self.parallel_config.distributed_executor_backend = "ray"
        super()._init_executor()
