"""`efficient-rollout train`: one hydra command for a GRPO or PPO run."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from efficient_rollout.cleanup import exit_code_of, nothing_left_behind

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


def train(argv: Sequence[str]) -> int:
    """Run a job from hydra overrides, or several; or show what the flags ask for.

    Everything that can be checked is checked before Ray starts; a fault there is one message on stderr.

    Args:
        argv: hydra's flags, and overrides on `configs/efficient_rollout.yaml`; every veRL option is one.

    Returns:
        0, or the process's exit code: 2 for bad input, 130 and 143 after SIGINT and SIGTERM, 1 for a failed run.
    """

    def job() -> int:
        from efficient_rollout.verl_plugin.compose import job_hydra
        from efficient_rollout.verl_plugin.multirun import jobs_of, run_jobs
        from efficient_rollout.verl_plugin.train_options import parse_options, show

        options = parse_options(argv)
        hydra = job_hydra(options.config_dir)
        shown = show(options, hydra)
        if shown is not None:
            sys.stdout.write(shown)
            return 0
        if options.multirun:
            flags = [] if options.config_dir is None else ["--config-dir", options.config_dir]
            return run_jobs(jobs_of(options.overrides, hydra), flags)
        config = _start(options.overrides, hydra)
        with nothing_left_behind() as take_signals:
            _run(config, take_signals)
        return 0

    return exit_code_of("train", job)


def _start(overrides: Sequence[str], hydra: "Hydra") -> DictConfig:
    from efficient_rollout.verl_plugin.compose import compose_config, prepare
    from efficient_rollout.verl_plugin.settings import job_settings

    # What the user wrote comes first: it is answered in a second, before anything large is imported.
    config = compose_config(overrides, hydra)
    settings = job_settings(config)
    from efficient_rollout.verl_plugin.checks import check_environment, check_job, prepare_profile, validate
    from efficient_rollout.verl_plugin.reproducible import name_agent_loops

    check_environment()
    # Before `prepare`, which writes files.
    name_agent_loops(config, settings)
    prepare(config)
    check_job(config)
    validate(config)
    prepare_profile(config)
    return config


def _run(config: DictConfig, take_signals: Callable[[], None]) -> None:
    import ray
    from ray.exceptions import RayError
    from verl.trainer.main_ppo import run_ppo

    from efficient_rollout.nodes import require_on_every_node
    from efficient_rollout.verl_plugin.checks import explain
    from efficient_rollout.verl_plugin.preloading import preloaded
    from efficient_rollout.verl_plugin.task_runner import AfterRayStarted, task_runner_class

    def once_ray_runs() -> None:
        # Ray's own SIGTERM handler aborts this process, and with it the clean-up.
        take_signals()
        require_on_every_node()

    try:
        runner_class = task_runner_class(use_v1=config.trainer.use_v1)
        with preloaded(config):
            run_ppo(config, AfterRayStarted(runner_class, once_ray_runs))
    except RayError as error:
        explained = explain(error)
        if explained is None:
            raise
        raise explained from error
    finally:
        ray.shutdown()
