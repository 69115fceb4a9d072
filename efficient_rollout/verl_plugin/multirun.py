"""Several jobs from one command, one after the other: every combination of the values that its overrides list."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from efficient_rollout.cleanup import nothing_left_behind
from efficient_rollout.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ConfigError
from efficient_rollout.secrets import arguments_without_secrets
from efficient_rollout.tables import aligned
from efficient_rollout.verl_plugin.compose import compose_config, told_plainly
from efficient_rollout.verl_plugin.settings import job_settings, run_directory

_DIRECTORY = "trainer.default_local_dir"
_NOT_OURS = re.compile(r"[+~]*hydra[./](sweeper|sweep|launcher)\b")
_UNFIT_FOR_A_FILE = re.compile(r"[^\w.,=+@-]+")


@dataclass(frozen=True, slots=True)
class Job:
    """Is one of the jobs: its overrides, those that tell it from the others, and where its files go."""

    overrides: tuple[str, ...]
    swept: str
    directory: Path


def jobs_of(overrides: Sequence[str], hydra: Hydra) -> list[Job]:
    """Return every combination, composed and checked, with a directory of its own.

    Where two would have the same one, each gets a folder in it, named after its values.

    Raises:
        ConfigError: A combination cannot be composed, a setting in it is wrong, or hydra's sweepers are chosen among.
    """
    if unfit := [override for override in overrides if _NOT_OURS.match(override)]:
        raise ConfigError(f"{unfit[0]}: jobs run here one after the other, without hydra's sweepers and launchers")
    with told_plainly(hydra):
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides))
        swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    jobs = []
    for combination in combinations:
        config = compose_config(combination, hydra)
        job_settings(config)
        told = ",".join(arguments_without_secrets([each for each in combination if each.partition("=")[0] in swept]))
        jobs.append(Job(tuple(combination), told, run_directory(config)))
    if max(Counter(job.directory for job in jobs).values()) == 1:
        return jobs
    apart = []
    for job in jobs:
        directory = job.directory / (_UNFIT_FOR_A_FILE.sub("_", job.swept) or "job")
        quoted = str(directory).replace("\\", "\\\\").replace("'", "\\'")
        apart.append(Job((*job.overrides, f"{_DIRECTORY}='{quoted}'"), job.swept, directory))
    if len({job.directory for job in apart}) < len(apart):
        raise ConfigError(f"several of the {len(apart)} jobs would have one directory: leave out values given twice")
    return apart


def run_jobs(jobs: Sequence[Job], flags: Sequence[str] = ()) -> int:
    """Run each in a process of its own, all with the same flags, and return the first exit code that is not 0, or 0.

    One that fails does not keep the next from running, an interrupted one does.
    """
    ended: list[int] = []
    for number, job in enumerate(jobs, start=1):
        sys.stderr.write(f"efficient-rollout train: job {number} of {len(jobs)}: {job.swept}, in {job.directory}\n")
        command = [sys.executable, "-m", "efficient_rollout", "train", *flags, *job.overrides]
        with nothing_left_behind():
            code = subprocess.Popen(command).wait()
        ended.append(code if code >= 0 else 128 - code)
        if ended[-1] in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            break
    told = [*("done" if code == 0 else f"failed, exit code {code}" for code in ended), *["not run"] * len(jobs)]
    rows = [[job.swept, how, str(job.directory)] for job, how in zip(jobs, told, strict=False)]
    sys.stdout.write(aligned([["job", "", "directory"], *rows], left=(0, 1, 2)))
    return next((code for code in ended if code), 0)
