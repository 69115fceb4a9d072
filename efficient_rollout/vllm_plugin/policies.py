"""The controller's policies, made from the settings of one engine."""

from pathlib import Path

from efficient_rollout.config import ControllerSettings, Settings
from efficient_rollout.controller.policy import Policy
from efficient_rollout.controller.registry import PolicyInputs, make_policy
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import ProfileKey, load_profile
from efficient_rollout.provenance import hardware
from efficient_rollout.vllm_plugin.compat import installed_vllm


def profile_key(model: str, scheme: str) -> ProfileKey:
    """What a latency profile must have been measured on to describe an engine on this machine.

    Args:
        model: The policy's directory.
        scheme: The drafter's scheme.

    Raises:
        InputFileError: The directory has no readable `config.json`.
    """
    import torch

    return ProfileKey(
        hardware=f"{hardware()['cpu']}, {torch.get_num_threads()} threads",
        model_shape=read_model_shape(Path(model) / "config.json").description,
        scheme=scheme,
        versions=" ".join(installed_vllm()),
        parallel_layout="tp1 pp1",
    )


def policy_from(settings: Settings, model: str) -> Policy:
    """The policy the settings name; which names are legal is checked where the settings are parsed.

    Args:
        settings: The whole tree.
        model: The policy's directory.

    Raises:
        ProfileError: The profile is missing, malformed, or belongs to another machine, policy or version.
    """
    controller, table = settings.controller, None
    if controller.profile is not None:
        profile = load_profile(Path(controller.profile))
        remedy = f"efficient-rollout calibrate --model {model} --out {controller.profile}"
        profile.require(profile_key(model, settings.drafter.scheme), remedy=remedy)
        table = TickTable(profile.model, controller.max_draft_tokens)
    inputs = PolicyInputs(max_draft_tokens=controller.max_draft_tokens, table=table)
    return make_policy(_with_arguments(controller), inputs)


def _with_arguments(settings: ControllerSettings) -> str:
    num_draft_tokens = settings.draft_tokens_when_drafting
    if settings.policy == "always":
        return f"always:{num_draft_tokens}"
    if settings.policy == "batch_threshold":
        return f"batch_threshold:{num_draft_tokens},{settings.max_running_requests}"
    return settings.policy
