"""The controller's rules, made from the settings of one engine, and the profiles they need."""

from pathlib import Path

from efficient_rollout.config import Settings
from efficient_rollout.controller.rule import Rule, RuleInputs, make_rule
from efficient_rollout.cost_model.latency import TickTable
from efficient_rollout.cost_model.model_shape import read_model_shape
from efficient_rollout.cost_model.profile import Profile, ProfileKey, load_profile
from efficient_rollout.engine.environment import cores_of_first, cores_of_machine, installed_vllm
from efficient_rollout.provenance import hardware


def profile_key(model: str, scheme: str, *, tensor_parallel_size: int = 1) -> ProfileKey:
    """Return what a latency profile must have been measured on to describe an engine on this machine.

    It is the same in an engine's process and in the one that starts it: nothing in it depends on a process's own
    threads.

    Args:
        model: The policy's directory, or its name on the Hugging Face Hub.
        scheme: From `profiled_scheme`.
        tensor_parallel_size: Of the engine.

    Raises:
        InputFileError: The directory has no readable `config.json`.
    """
    return ProfileKey(
        hardware=_hardware(tensor_parallel_size),
        model_shape=read_model_shape(model).description,
        scheme=scheme,
        versions=" ".join(installed_vllm()),
        parallel_layout=f"tp{tensor_parallel_size} pp1",
    )


def profiled_scheme(settings: Settings) -> str:
    """Return the settings that decide which kernels run, for a profile's key."""
    kernel = settings.verify_kernel
    return settings.drafter.scheme + ("" if kernel == "auto" else f", verify_kernel {kernel}")


def _hardware(num_workers: int) -> str:
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    text = f"{hardware()['cpu']}, {len(cores_of_machine()[0])} cores"
    # vLLM gives each engine one thread per physical core it may use, unless it is told otherwise.
    if (bound := cores_of_first(num_workers)) != "auto":
        text += f", threads bound to {bound}"
    if envs.VLLM_CPU_NUM_OF_RESERVED_CPU is not None:
        text += f", {envs.VLLM_CPU_NUM_OF_RESERVED_CPU} reserved"
    return text


def check_profile(settings: Settings, model: str, *, tensor_parallel_size: int = 1) -> Profile | None:
    """Refuse a profile that an engine with these settings would refuse, before one is started.

    Returns:
        The profile; None where the settings name none, or drafting is disabled.

    Raises:
        ProfileError: `controller.profile` is missing, malformed, or belongs to another machine, policy, scheme or
            version. The message names every difference, and the command that makes a new one.
        InputFileError: The policy has no readable `config.json`.
    """
    path = settings.controller.profile
    if path is None or not settings.enabled:
        return None
    remedy = (
        f"efficient-rollout calibrate --model {model} --scheme {settings.drafter.scheme} "
        f"--verify-kernel {settings.verify_kernel} --out {path}"
        + (f" --tensor-parallel-size {tensor_parallel_size}" if tensor_parallel_size > 1 else "")
    )
    profile = load_profile(Path(path).expanduser(), remedy=remedy)
    key = profile_key(model, profiled_scheme(settings), tensor_parallel_size=tensor_parallel_size)
    profile.require(key, remedy=remedy)
    return profile


def rule_from(settings: Settings, model: str, *, tensor_parallel_size: int = 1) -> Rule:
    """Make the rule the settings name.

    Which names are legal is checked where the settings are parsed.

    Args:
        settings: The whole tree.
        model: The policy's directory, or its name on the Hugging Face Hub.
        tensor_parallel_size: Of the engine.

    Raises:
        ProfileError: See `check_profile`.
        ConfigError: The rule needs a profile and the settings name none.
    """
    controller = settings.controller
    profile = check_profile(settings, model, tensor_parallel_size=tensor_parallel_size)
    table = None if profile is None else TickTable(profile.model, controller.max_draft_tokens)
    inputs = RuleInputs(
        max_draft_tokens=controller.max_draft_tokens,
        num_draft_tokens=controller.num_draft_tokens,
        max_running_requests=controller.max_running_requests,
        table=table,
    )
    return make_rule(controller.rule, inputs)
