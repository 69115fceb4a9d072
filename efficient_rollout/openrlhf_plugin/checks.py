"""Everything of an OpenRLHF job that can be known to be wrong before Ray starts, with the way out."""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from efficient_rollout.engine.checks import (
    check_build,
    check_certificate,
    check_gpu_settings,
    check_model,
    check_scheme,
    check_vllm_version,
)
from efficient_rollout.engine.environment import device_type, waits_for_gpu
from efficient_rollout.engine.profiles import check_profile, with_profile
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.files import require_in_python, write_json
from efficient_rollout.metrics.step_file import require_free
from efficient_rollout.openrlhf_plugin import flash_attention
from efficient_rollout.openrlhf_plugin.options import Options
from efficient_rollout.provenance import provenance
from efficient_rollout.secrets import text_without_secrets, without_secrets
from efficient_rollout.upstream import check_installed

logger = logging.getLogger(__name__)

# `create_vllm_engines` names no other; OpenRLHF's own name for the trainer's is another word.
_ENGINE_DTYPE, _TRAINER_DTYPE = "bfloat16", "bf16"
_TABLES = {".json", ".jsonl", ".csv", ".parquet", ".arrow"}


def check_environment() -> None:
    """Check versions and vLLM's device, which on a cluster of GPUs need not be here.

    Raises:
        UnsupportedVersionError: OpenRLHF or vLLM is missing or not supported.
        UnsupportedDeviceError: vLLM runs on a device that no engine of this package runs on.
    """
    check_installed("openrlhf")
    check_vllm_version()
    check_build()


def prepare_job(args: Any, options: Options) -> Any:
    """Check OpenRLHF's parsed arguments, on a CPU adapt them to it, and write the run's own files.

    Args:
        args: OpenRLHF's tree of arguments; changed in place.
        options: This package's.

    Returns:
        The same tree.

    Raises:
        ConfigError: Two options do not fit together, or another job writes into the run's directory now.
        InputFileError: The policy, the reward or the data set is missing or unreadable.
        UnsupportedModelError: The drafter cannot handle the policy.
        SchemeUnavailableError: The drafter's scheme has no kernel on this device, or takes no layer of the policy.
        ProfileError: The latency profile is missing, malformed, or belongs to another machine, policy or version.
        UnsupportedDeviceError: This kind of GPU has no certificate, and the settings require one.
    """
    settings, is_gpu = options.settings, device_type() == "cuda"
    dtype = _ENGINE_DTYPE if is_gpu else options.param_dtype
    _check_fits(args, options)
    if is_gpu:
        _check_on_gpu(args, options)
    else:
        _adapt_to_cpu(args, options)
    model, num_workers = args.actor.model_name_or_path, args.vllm.tensor_parallel_size
    # OpenRLHF's trainer and its engines trust the code that a policy brings.
    check_model(model, settings, dtype=dtype, tensor_parallel_size=num_workers, options={"trust_remote_code": True})
    if not waits_for_gpu():  # each engine checks its own device
        check_scheme(settings)
        check_certificate(settings)
        check_profile(settings, model, tensor_parallel_size=num_workers)
    _check_reward(args)
    _check_dataset("--data.prompt_dataset", args.data.prompt_dataset, args.data.input_key)
    if args.eval.dataset:
        _check_dataset("--eval.dataset", args.eval.dataset, args.data.input_key)
    if not waits_for_gpu():
        is_compiled = not args.vllm.enforce_eager
        with_profile(model, settings, dtype=dtype, is_compiled=is_compiled, tensor_parallel_size=num_workers)
    _write_run_files(args, options)
    return args


def _adapt_to_cpu(args: Any, options: Options) -> None:
    from efficient_rollout.openrlhf_plugin import cpu

    if args.vllm.tensor_parallel_size > 1:
        raise ConfigError(
            f"--vllm.tensor_parallel_size is {args.vllm.tensor_parallel_size}: OpenRLHF starts such engines through "
            "Ray, to which vLLM gives no CPUs; use 1, and more engines"
        )
    for change in cpu.adapt(args, options):
        logger.warning("without a GPU, %s", text_without_secrets(change))


def _check_on_gpu(args: Any, options: Options) -> None:
    """Refuse what would end a job on GPUs at its first step, or be left aside."""
    if options.cpu_given:
        raise ConfigError(f"{', '.join(options.cpu_given)} is for a machine without a GPU: leave it out")
    check_gpu_settings(options.settings)
    if args.ds.param_dtype != _TRAINER_DTYPE:
        raise ConfigError(
            f"--ds.param_dtype is {args.ds.param_dtype}: OpenRLHF's engines are in {_ENGINE_DTYPE}, and take weights "
            f"of no other dtype; use {_TRAINER_DTYPE}"
        )
    wants_flash = args.ds.packing_samples or args.ds.ring_attn_size > 1 or args.train.dynamic_batch_enable
    if (wants_flash or "flash_attention" in args.ds.attn_implementation) and not flash_attention.is_installed():
        raise ConfigError(
            f"--ds.attn_implementation is {args.ds.attn_implementation}, and flash-attn is not installed: build it "
            "(`pip install --no-build-isolation flash-attn==2.8.3`), or set --ds.attn_implementation sdpa and leave "
            "out --ds.packing_samples, --ds.ring_attn_size and --train.dynamic_batch_enable, which need it"
        )


def _check_fits(args: Any, options: Options) -> None:
    if args.actor.model_name_or_path is None:
        raise ConfigError("--actor.model_name_or_path is not set: which policy is to be trained?")
    if not args.vllm.num_engines:
        raise ConfigError(f"--vllm.num_engines is {args.vllm.num_engines}: rollouts need at least one engine")
    faults = {
        "--ds.lora.rank": args.ds.lora.rank > 0,
        "--data.max_images_per_prompt": args.data.max_images_per_prompt > 0,
    }
    found = [name for name, at_fault in faults.items() if at_fault]
    if found and options.settings.enabled:
        raise ConfigError(
            f"self-drafting does not work together with {', '.join(found)}: remove it, or set "
            "--efficient_rollout.enabled=false"
        )


def _check_reward(args: Any) -> None:
    """Check the function that scores, if it is a Python file; a reward model or server shows only when it is asked."""
    if args.train.agent_func_path:
        # OpenRLHF expands no "~".
        require_in_python(Path(args.train.agent_func_path), "AgentExecutor", option="--train.agent_func_path")
        return
    remote = args.reward.remote_url
    if not remote and not args.reward.model_name_or_path:
        raise ConfigError("nothing scores the responses: set --reward.remote_url or --reward.model_name_or_path")
    for url in remote.split(",") if remote else ():
        if url.endswith(".py"):
            require_in_python(Path(url), "reward_func", option="--reward.remote_url")
        elif "://" not in url:
            raise InputFileError(f"--reward.remote_url: {url} is no address (http://...) and no Python file")


def _check_dataset(option: str, names: str | None, input_key: str) -> None:
    if not names:
        raise ConfigError(f"{option} is not set")
    for name in (part.strip().split("@")[0].strip() for part in names.split(",")):
        path = Path(name)
        is_local = path.suffix in _TABLES or name.startswith((".", "/", "~"))
        if is_local and not path.exists():
            raise InputFileError(f"{option}: {path} does not exist")
        if path.suffix == ".jsonl" and path.is_file():
            _check_first_line(option, path, input_key)


def _check_first_line(option: str, path: Path, input_key: str) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise InputFileError(f"{option}: the first line of {path} is not JSON: {error}") from error
    if not isinstance(first, dict) or input_key not in first:
        has = ", ".join(first) if isinstance(first, dict) else type(first).__name__
        raise InputFileError(f"{option}: {path} has no {input_key!r} (it has {has}); set --data.input_key")


def _write_run_files(args: Any, options: Options) -> None:
    directory = Path(args.ckpt.output_dir).expanduser().resolve()
    # Ray's processes have working directories of their own.
    args.ckpt.output_dir = str(directory)
    directory.mkdir(parents=True, exist_ok=True)
    require_free(directory)
    tree = {"efficient_rollout": options.settings.to_dict(), "openrlhf": _plain(args)}
    document = OmegaConf.create(without_secrets(tree))
    OmegaConf.save(document, directory / "config.yaml")
    write_json(directory / "provenance.json", provenance())


def _plain(tree: Any) -> Any:
    if hasattr(tree, "__dict__"):
        return {name: _plain(value) for name, value in vars(tree).items()}
    return list(tree) if isinstance(tree, tuple) else tree
