"""`efficient-rollout openrlhf`: OpenRLHF's own entry point, with this package's rollouts."""

import functools
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from efficient_rollout.cleanup import exit_code_of, nothing_left_behind
from efficient_rollout.errors import ConfigError, ours_behind
from efficient_rollout.openrlhf_plugin.options import Options, parse_options

ENTRY_POINT = "openrlhf.cli.train_ppo_ray"


def launch(argv: Sequence[str]) -> int:
    """Run a job.

    Everything that can be checked is checked before Ray starts; a fault there is one message on stderr.

    Args:
        argv: This package's settings, `--`, and the arguments of `python -m openrlhf.cli.train_ppo_ray`.

    Returns:
        0, or the process's exit code: 2 for bad input, 130 and 143 after SIGINT and SIGTERM.
    """

    def job() -> None:
        from efficient_rollout.openrlhf_plugin.checks import check_environment

        options = parse_options(argv)
        check_environment()
        with nothing_left_behind() as take_signals:
            _run(options, take_signals)

    return exit_code_of("openrlhf", job)


def _run(options: Options, take_signals: Callable[[], None]) -> None:
    from efficient_rollout.openrlhf_plugin import stand_ins  # noqa: F401 - first: what this machine lacks
    from efficient_rollout.openrlhf_plugin.seams import check_seams

    check_seams()
    import ray
    from ray.exceptions import RayError

    try:
        with _everything_replaced(options, take_signals):
            runpy.run_module(ENTRY_POINT, run_name="__main__", alter_sys=True)
    except RayError as error:
        ours = ours_behind(error)
        if ours is None:
            raise
        raise ours from error
    except AssertionError as error:
        if ray.is_initialized():
            raise
        raise ConfigError(f"OpenRLHF refuses its arguments: {error}") from error
    finally:
        ray.shutdown()


@contextmanager
def _everything_replaced(options: Options, take_signals: Callable[[], None]) -> Iterator[None]:
    """Replace every actor: OpenRLHF's entry point takes its actors by name out of these modules."""
    import ray
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async
    from openrlhf.trainer.ray import launcher, ppo_actor, ppo_critic, vllm_engine
    from openrlhf.utils import config

    from efficient_rollout.nodes import require_on_every_node, require_running_cluster
    from efficient_rollout.openrlhf_plugin import actors, checks, cpu, engine_actor, stand_ins

    parsed: dict[str, Any] = {}

    def hierarchize(stock: Callable[[Any], Any], flat: Any) -> Any:
        """Stand at the one place that every parsed argument passes, before OpenRLHF's own checks and before Ray."""
        parsed["args"] = checks.prepare_job(stock(flat), options)
        return parsed["args"]

    def start_ray(stock: Callable[..., Any], **given: Any) -> Any:
        require_running_cluster(given.get("address"))
        started = cpu.start_ray(stock, given, parsed["args"]) if stand_ins.IS_ON_CPU else stock(**given)
        # Ray's own SIGTERM handler aborts this process, and with it the clean-up.
        take_signals()
        require_on_every_node()
        return started

    vllm_arguments = cpu.vllm_arguments(options) if stand_ins.IS_ON_CPU else {}
    door = engine_actor.EngineActorDoor(engine_actor.EngineActor, options.settings, vllm_arguments)
    on_a_gpu = ray.remote(num_gpus=1)
    places = [
        (sys, "argv", [ENTRY_POINT, *options.openrlhf]),
        (config, "hierarchize", functools.partial(hierarchize, config.hierarchize)),
        (ray, "init", functools.partial(start_ray, ray.init)),
        (vllm_engine, "RolloutRayActor", door),
        (ppo_actor, "PolicyModelActor", on_a_gpu(actors.Policy)),
        (ppo_critic, "CriticModelActor", on_a_gpu(actors.Critic)),
        (launcher, "ReferenceModelActor", on_a_gpu(actors.Reference)),
        (launcher, "RewardModelActor", on_a_gpu(actors.Reward)),
        (ppo_trainer, "PPOTrainer", ray.remote(actors.Trainer)),
        (ppo_trainer_async, "PPOTrainerAsync", ray.remote(actors.AsyncTrainer)),
    ]
    with ExitStack() as stack:
        for module, name, ours in places:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, ours)
        yield
