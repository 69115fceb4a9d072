"""Everything of an OpenRLHF job that can be known to be wrong before Ray starts, with the way out."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from efficient_rollout.engine.checks import check_gpu_settings
from efficient_rollout.engine.environment import device_type
from efficient_rollout.errors import ConfigError, InputFileError
from efficient_rollout.files import require_in_python
from efficient_rollout.openrlhf_plugin import stand_ins
from efficient_rollout.openrlhf_plugin.options import Options
from efficient_rollout.secrets import text_without_secrets
from efficient_rollout.training_job import check_policy, check_table, measure_profile, refuse, write_run_files

logger = logging.getLogger(__name__)

# `create_vllm_engines` names no other; OpenRLHF's own name for the trainer's is another word.
_ENGINE_DTYPE, _TRAINER_DTYPE = "bfloat16", "bf16"
_TABLES = {".json", ".jsonl", ".csv", ".parquet", ".arrow"}


def prepare_job(args: Any, options: Options) -> Any:
    """Check OpenRLHF's tree of arguments, on a CPU adapt it in place, and write the run's own files; return the tree.

    The settings go with it to every trainer, as `efficient_rollout`.

    Raises:
        ConfigError: Two options do not fit together, or another job writes into the run's directory now.
        InputFileError: The policy, the reward or the data set is missing or unreadable.
        EfficientRolloutError: As `training_job.check_policy` and `measure_profile`.
    """
    settings, is_gpu = options.settings, device_type() == "cuda"
    _check_fits(args, options)
    if is_gpu:
        _check_on_gpu(args, options)
    else:
        _adapt_to_cpu(args, options)
    model = args.actor.model_name_or_path
    engine = {
        "dtype": _ENGINE_DTYPE if is_gpu else options.param_dtype,
        "tensor_parallel_size": args.vllm.tensor_parallel_size,
    }
    # OpenRLHF's trainer and its engines trust the code that a policy brings.
    check_policy(model, settings, **engine, options={"trust_remote_code": True})
    _check_reward(args)
    _check_dataset("--data.prompt_dataset", args.data.prompt_dataset, args.data.input_key)
    if args.eval.dataset:
        _check_dataset("--eval.dataset", args.eval.dataset, args.data.input_key)
    measure_profile(model, settings, **engine, enforce_eager=args.vllm.enforce_eager)
    # Ray's processes have working directories of their own.
    args.ckpt.output_dir = str(Path(args.ckpt.output_dir).expanduser().resolve())
    tree = {"efficient_rollout": settings.to_dict(), "openrlhf": _plain(args)}
    write_run_files(Path(args.ckpt.output_dir), tree)
    args.efficient_rollout = SimpleNamespace(**settings.to_dict())
    return args


def _adapt_to_cpu(args: Any, options: Options) -> None:
    """Change what names only what a GPU has; refuse what cannot be had, or was never run, without one."""
    _refuse_gpu_only(args)
    wanted = [
        ("ds", "attn_implementation", "sdpa", args.ds.attn_implementation not in ("sdpa", "eager")),
        ("ds", "packing_samples", False, args.ds.packing_samples),
        ("ds", "enable_sleep", False, args.ds.enable_sleep),
        ("ds", "adam_offload", False, args.ds.adam_offload),
        ("train", "dynamic_batch_enable", False, args.train.dynamic_batch_enable),
        ("vllm", "enable_sleep", False, args.vllm.enable_sleep),
        ("vllm", "sync_backend", "gloo", args.vllm.sync_backend == "nccl"),
    ]
    for group, name, value, is_wanted in wanted:
        if is_wanted:
            told = f"--{group}.{name} is {value}, not {getattr(getattr(args, group), name)}"
            logger.warning("without a GPU, %s", text_without_secrets(told))
            setattr(getattr(args, group), name, value)
    if options.param_dtype == "float32":
        args.ds.param_dtype = "fp32"


def _refuse_gpu_only(args: Any) -> None:
    if args.vllm.tensor_parallel_size > 1:
        raise ConfigError(
            f"--vllm.tensor_parallel_size is {args.vllm.tensor_parallel_size}: OpenRLHF starts such engines through "
            "Ray, to which vLLM gives no CPUs; use 1, and more engines"
        )
    faults = {
        "--ds.load_in_4bit": args.ds.load_in_4bit,
        "--ds.use_liger_kernel": args.ds.use_liger_kernel,
        "--ds.ring_attn_size": args.ds.ring_attn_size > 1,
        "--ds.tensor_parallel_size": args.ds.tensor_parallel_size > 1,
        "--ds.zero_stage 3": args.ds.zero_stage > 2,
        "--ds.param_dtype fp16": args.ds.param_dtype == "fp16",
        "--vllm.sync_with_ray": args.vllm.sync_with_ray,
        **{f"--{group}.num_nodes, --{group}.num_gpus_per_node": num > 1 for group, num in num_slots(args).items()},
    }
    refuse(
        faults,
        "without a GPU, these cannot be had or were never run: {}. Remove them; each part of the job takes one node "
        "with one slot",
    )


def num_slots(args: Any) -> dict[str, int]:
    """Return those of each part that trains or scores, beside the engines; OpenRLHF leaves the others' at 8."""
    in_use = {
        "actor": True,
        "ref": args.algo.kl.init_coef > 0,
        "critic": args.algo.advantage.estimator == "gae",
        "reward": not (args.reward.remote_url or args.train.agent_func_path),
    }
    groups = {name: getattr(args, name) for name, is_in_use in in_use.items() if is_in_use}
    return {name: group.num_nodes * group.num_gpus_per_node for name, group in groups.items()}


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
    if (wants_flash or "flash_attention" in args.ds.attn_implementation) and not stand_ins.has_flash_attention():
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
    if options.settings.enabled:
        refuse(
            {
                "--ds.lora.rank": args.ds.lora.rank > 0,
                "--data.max_images_per_prompt": args.data.max_images_per_prompt > 0,
            },
            "self-drafting does not work together with {}: remove it, or set --efficient_rollout.enabled=false",
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
        if path.is_file():
            check_table(option, path, input_key, "--data.input_key")


def _plain(tree: Any) -> Any:
    return {name: _plain(value) for name, value in vars(tree).items()} if isinstance(tree, SimpleNamespace) else tree
