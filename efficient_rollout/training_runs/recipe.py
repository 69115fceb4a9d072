"""Whether two runs may be compared: the same recipe, and what differs beside it."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from efficient_rollout.errors import InputFileError
from efficient_rollout.metrics import names
from efficient_rollout.training_runs.run import Run

# A difference in one of these makes the training another one: there is nothing to compare. A run has either
# framework's.
_RECIPE_KEYS = (
    "actor_rollout_ref.model.path", "embedded_task.num_train",
    "algorithm.adv_estimator", "algorithm.use_kl_in_reward",
    "data.train_files", "data.train_batch_size", "data.max_prompt_length", "data.max_response_length",
    "actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.rollout.top_p", "actor_rollout_ref.rollout.top_k",
    "actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.use_kl_loss", "actor_rollout_ref.actor.kl_loss_coef",
    "openrlhf.actor.model_name_or_path", "openrlhf.actor.adam.lr",
    "openrlhf.algo.advantage.estimator", "openrlhf.algo.kl.init_coef", "openrlhf.algo.kl.use_loss",
    "openrlhf.data.max_len", "openrlhf.data.prompt_dataset",
    "openrlhf.rollout.batch_size", "openrlhf.rollout.max_new_tokens", "openrlhf.rollout.n_samples_per_prompt",
    "openrlhf.rollout.temperature", "openrlhf.rollout.top_p",
    "openrlhf.train.async_enable", "openrlhf.train.batch_size",
)  # fmt: skip
# A difference in one of these is named on the page: it is part of what was measured.
_SPEED_KEYS = (
    "data.seed", "embedded_task.seed", "trainer.device", "trainer.nnodes", "trainer.n_gpus_per_node",
    "actor_rollout_ref.rollout.dtype", "actor_rollout_ref.rollout.enforce_eager",
    "actor_rollout_ref.rollout.tensor_model_parallel_size", "actor_rollout_ref.rollout.data_parallel_size",
    "actor_rollout_ref.rollout.gpu_memory_utilization", "actor_rollout_ref.rollout.max_num_seqs",
    "openrlhf.train.seed", "openrlhf.vllm.enforce_eager", "openrlhf.vllm.num_engines",
)  # fmt: skip
_ABSENT = object()


def comparison_notes(own: Run, baseline: Run) -> list[str]:
    """Return what differs between two runs of one recipe, a sentence each.

    Raises:
        InputFileError: They follow different recipes; the message names the keys.
    """
    if own.config is None or baseline.config is None:
        lacking = [str(run.directory) for run in (own, baseline) if run.config is None]
        return [f"No config.yaml in {', '.join(lacking)}: whether both runs follow one recipe could not be checked."]
    different = list(_differences(own.config, baseline.config, _RECIPE_KEYS))
    if different:
        raise InputFileError(
            f"{baseline.directory} follows another recipe than {own.directory}, so neither's speed tells of the other: "
            f"{'; '.join(different)}. Name a run whose recipe is the same."
        )
    notes = [f"The runs differ in {text}." for text in _differences(own.config, baseline.config, _SPEED_KEYS)]
    engines = [np.nanmax(np.append(run.values(names.NUM_ENGINES), 0.0)) for run in (own, baseline)]
    if engines[0] != engines[1] and min(engines) > 0:
        notes.append(f"The runs differ in their engines ({engines[0]:.0f} here, {engines[1]:.0f} in the baseline).")
    hardware = [run.provenance.get("hardware") for run in (own, baseline)]
    if None not in hardware and hardware[0] != hardware[1]:
        notes.append("The runs were made on different machines, or with different resources.")
    return notes


def _differences(own: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> Iterable[str]:
    for key in keys:
        ours, theirs = _look_up(own, key), _look_up(other, key)
        if _comparable(key, ours) != _comparable(key, theirs):
            shown = ["not set" if value is _ABSENT else value for value in (ours, theirs)]
            yield f"{key} ({shown[0]} here, {shown[1]} in the baseline)"


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def _comparable(key: str, value: Any) -> Any:
    # The embedded task's files are written into each run's own directory; their names tell their sizes.
    if key in ("data.train_files", "openrlhf.data.prompt_dataset"):
        paths = value if isinstance(value, list) else [value]
        return [PurePath(path).name if isinstance(path, str) else path for path in paths]
    return value
