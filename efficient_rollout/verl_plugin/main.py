"""`efficient-rollout train`: one hydra command for a GRPO or PPO run."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from efficient_rollout.cleanup import exit_code_of, nothing_left_behind


def train(argv: Sequence[str]) -> int:
    """Run a job from overrides on `configs/efficient_rollout.yaml`, or several; or show what the flags ask for.

    Everything that can be checked is checked before Ray starts; a fault there is one message on stderr.

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


def _start(overrides: Sequence[str], hydra: Any) -> DictConfig:
    from efficient_rollout.verl_plugin.compose import compose_config
    from efficient_rollout.verl_plugin.settings import job_settings

    # What the user wrote comes first: it is answered in a second, before anything large is imported.
    config = compose_config(overrides, hydra)
    settings = job_settings(config)
    from efficient_rollout.verl_plugin import checks
    from efficient_rollout.verl_plugin.prepare import prepare

    checks.check_environment()
    # Before `prepare`, which writes files.
    checks.name_agent_loops(config, settings)
    prepare(config)
    checks.check_job(config)
    checks.validate(config)
    checks.prepare_profile(config)
    return config


def _run(config: DictConfig, take_signals: Callable[[], None]) -> None:
    from verl.trainer.main_ppo import TaskRunnerV1 as task_runner
    from verl.trainer.main_ppo import run_ppo

    from efficient_rollout.training_job import around_ray
    from efficient_rollout.verl_plugin.checks import explain
    from efficient_rollout.verl_plugin.preloading import preloaded

    if not config.trainer.use_v1:
        # It imports the legacy trainer, and vLLM with it.
        from verl.trainer.main_ppo_v0 import TaskRunner as task_runner
    with around_ray(take_signals, explain=explain), preloaded(config):
        run_ppo(config, checked(task_runner))


def checked(task_runner: Any) -> Any:
    """Return one of veRL's actor classes of a task runner, which refuses to train in a process without the plugin."""
    import ray

    class CheckedTaskRunner(task_runner.__ray_metadata__.modified_class):
        def run(self, config: Any) -> None:
            from efficient_rollout.verl_plugin.ledger import require_plugin

            require_plugin()
            super().run(config)

    return ray.remote(CheckedTaskRunner)
