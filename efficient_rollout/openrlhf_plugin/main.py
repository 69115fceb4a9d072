"""`efficient-rollout openrlhf`: OpenRLHF's own entry point, with this package's rollouts."""

import functools
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from efficient_rollout.cleanup import exit_code_of, nothing_left_behind
from efficient_rollout.errors import ConfigError
from efficient_rollout.openrlhf_plugin.options import Options, parse_options

ENTRY_POINT = "openrlhf.cli.train_ppo_ray"
# Ray's words where it has found a cluster that runs, and nothing is started yet.
_JOINS = "When connecting to an existing cluster"


def launch(argv: Sequence[str]) -> int:
    """Run a job from this package's settings, `--`, and the arguments of `python -m openrlhf.cli.train_ppo_ray`.

    Everything that can be checked is checked before Ray starts; a fault there is one message on stderr.

    Returns:
        0, or the process's exit code: 2 for bad input, 130 and 143 after SIGINT and SIGTERM.
    """

    def job() -> None:
        options = parse_options(argv)
        from efficient_rollout.training_job import check_versions

        check_versions("openrlhf")
        with nothing_left_behind() as take_signals:
            _run(options, take_signals)

    return exit_code_of("openrlhf", job)


def _run(options: Options, take_signals: Callable[[], None]) -> None:
    from efficient_rollout.openrlhf_plugin import stand_ins  # first: what this machine lacks
    from efficient_rollout.openrlhf_plugin.seams import check_seams

    check_seams()
    import ray
    from openrlhf.utils import config

    from efficient_rollout.nodes import require_running_cluster
    from efficient_rollout.openrlhf_plugin import checks
    from efficient_rollout.training_job import around_ray

    parsed: dict[str, Any] = {}

    def hierarchize(stock: Callable[[Any], Any], flat: Any) -> Any:
        """Stand at the one place that every parsed argument passes, before OpenRLHF's own checks and before Ray."""
        parsed["args"] = checks.prepare_job(stock(flat), options)
        return parsed["args"]

    def start_ray(stock: Callable[..., Any], **given: Any) -> Any:
        require_running_cluster(given.get("address"))
        return start_ray_on_cpu(stock, given, parsed["args"]) if stand_ins.IS_ON_CPU else stock(**given)

    places = [
        (sys, "argv", [ENTRY_POINT, *options.openrlhf]),
        (config, "hierarchize", functools.partial(hierarchize, config.hierarchize)),
        *_actors(options),
    ]
    for module, name, ours in places:
        setattr(module, name, ours)
    with around_ray(take_signals, functools.partial(start_ray, ray.init)):
        try:
            runpy.run_module(ENTRY_POINT, run_name="__main__", alter_sys=True)
        except AssertionError as error:
            if ray.is_initialized():
                raise
            raise ConfigError(f"OpenRLHF refuses its arguments: {error}") from error


def _actors(options: Options) -> list[tuple[Any, str, Any]]:
    """Return modules that OpenRLHF's entry point takes actors out of, an actor's name there, and what replaces it."""
    import ray
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async
    from openrlhf.trainer.ray import launcher, ppo_actor, ppo_critic, vllm_engine

    from efficient_rollout.openrlhf_plugin import actors, engine_actor, stand_ins

    cpu_arguments = {"dtype": options.param_dtype, "kv_cache_memory_bytes": options.kv_cache_bytes}
    vllm_arguments = cpu_arguments if stand_ins.IS_ON_CPU else {}
    on_a_gpu = ray.remote(num_gpus=1)
    door = engine_actor.EngineActorDoor(engine_actor.EngineActor, options.settings, vllm_arguments)
    return [
        (vllm_engine, "RolloutRayActor", door),
        (ppo_actor, "PolicyModelActor", on_a_gpu(actors.Policy)),
        (ppo_critic, "CriticModelActor", on_a_gpu(actors.Critic)),
        (launcher, "ReferenceModelActor", on_a_gpu(actors.Reference)),
        (launcher, "RewardModelActor", on_a_gpu(actors.Reward)),
        (ppo_trainer, "PPOTrainer", ray.remote(actors.Trainer)),
        (ppo_trainer_async, "PPOTrainerAsync", ray.remote(actors.AsyncTrainer)),
    ]


def start_ray_on_cpu(init: Callable[..., Any], given: Mapping[str, Any], args: Any) -> Any:
    """Call `ray.init`: join the cluster that it finds (RAY_ADDRESS, or `ray start` on this machine), or else start one.

    A cluster that runs has its own slots, and must have been started with as many as the job has parts
    (`ray start --num-gpus`). One that is started gets a logical GPU for each part.
    """
    from efficient_rollout.openrlhf_plugin import checks

    runtime_env = dict(given.get("runtime_env") or {})
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **variables}
    given = {**given, "runtime_env": runtime_env}
    num_slots = args.vllm.num_engines + sum(checks.num_slots(args).values())
    ours = {
        "num_gpus": num_slots,
        "num_cpus": num_slots + 4,  # the controllers and queues
        "object_store_memory": 512 << 20,
        "include_dashboard": False,
    }
    try:
        return init(**given, **ours)
    except ValueError as error:
        if _JOINS not in str(error):
            raise
        return init(**given)
