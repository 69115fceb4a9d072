"""The embedded tasks as parquet files, for veRL and for OpenRLHF."""

import logging
from collections.abc import Sequence
from pathlib import Path

from efficient_rollout.errors import ConfigError
from efficient_rollout.files import written_whole
from efficient_rollout.tasks import arithmetic, word_problems
from efficient_rollout.tasks.arithmetic import Problem, Split
from efficient_rollout.tasks.policy import disk_faults_told
from efficient_rollout.tasks.smollm2 import SIZE as SMOLLM2
from efficient_rollout.tasks.training_plans import level_of
from efficient_rollout.tasks.word_problems import WordProblem

logger = logging.getLogger(__name__)


def write_dataset(
    path_dir: Path | str,
    *,
    size: str,
    num_train: int,
    num_validation: int,
    seed: int = 0,
    max_response_tokens: int | None = None,
) -> tuple[Path, Path]:
    """Write `train.parquet` and `validation.parquet`, which share no problem, whatever their seeds; return both.

    Within a split short problems may repeat, as there are few of them.

    Args:
        path_dir: Directory for the files, made if absent; files of these names are replaced.
        size: The policy's, which sets the difficulty.
        num_train: Problems to train on.
        num_validation: Problems to validate on.
        seed: Of the draw.
        max_response_tokens: Leave out longer worked answers; None keeps the size's own limit. Word problems have none.

    Raises:
        ConfigError: A number or the size is not a legal one.
        InputFileError: The directory cannot be written.
    """
    for name, value in (("num_train", num_train), ("num_validation", num_validation)):
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")
    counts: dict[Split, int] = {"train": num_train, "validation": num_validation}
    paths = []
    for split, count in counts.items():
        problems: Sequence[Problem | WordProblem]
        if size == SMOLLM2:
            problems = word_problems.take(split, seed, count)
        else:
            level = level_of(size)
            if max_response_tokens is not None:
                level = level.capped(max_response_tokens)
            problems = arithmetic.take(level, split, seed, count)
        rows = [_row(problem, split, index) for index, problem in enumerate(problems)]
        paths.append(_write(Path(path_dir) / f"{split}.parquet", rows))
    return paths[0], paths[1]


def _row(problem: Problem | WordProblem, split: Split, index: int) -> dict:
    if isinstance(problem, WordProblem):
        data_source, prompt, about = word_problems.DATA_SOURCE, problem.messages, {"num_steps": problem.num_steps}
    else:
        data_source, prompt = arithmetic.DATA_SOURCE, [{"role": "user", "content": problem.question}]
        about = {"answer": problem.worked_answer, "num_worked_tokens": problem.num_response_tokens}
    return {
        "data_source": data_source,
        "prompt": prompt,
        "label": problem.answer,  # OpenRLHF takes it from a column of its own
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"question": problem.question, "split": split, "index": index, **about},
    }


def _write(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    with disk_faults_told(path), written_whole(path) as staged:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), staged)
    logger.info("wrote %d problems to %s", len(rows), path)
    return path
