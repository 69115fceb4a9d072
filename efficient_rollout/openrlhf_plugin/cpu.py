"""What stock OpenRLHF needs on a machine without a GPU: where tensors lie, and which collective carries them.

Loss, optimizer, sampling, reward and the order of calls stay OpenRLHF's own. All of it goes when OpenRLHF asks for a
device instead of naming CUDA; each entry says when it goes before that.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from efficient_rollout.engine.weights.gloo_group import GlooGroup
from efficient_rollout.errors import ConfigError, UnsupportedDeviceError
from efficient_rollout.openrlhf_plugin.options import Options
from efficient_rollout.patching import Patch, apply_patches
from efficient_rollout.training_job import refuse

# Ray's words where it has found a cluster that runs, and nothing is started yet.
_JOINS = "When connecting to an existing cluster"
# DeepSpeed's own variable for which accelerator it uses.
_ACCELERATOR = "DS_ACCELERATOR"

# Called by OpenRLHF without asking whether CUDA is there; `torch.cuda.is_available()` stays False, so that no other
# library notices. The device goes into `Tensor.to` and `device=`, where a number would mean a GPU.
_CUDA_CALLS: Mapping[str, Callable[..., Any]] = {
    "set_device": lambda *_: None,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "current_stream": lambda *_: None,
    "current_device": lambda: "cpu",
}


def _gloo_group(_original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda host, port, rank, world_size, _device: GlooGroup(host, port, rank, world_size)


def _buffer_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        ours, torch.cuda.current_device = torch.cuda.current_device, lambda: 0
        try:
            original(self, *args, **kwargs)
        finally:
            torch.cuda.current_device = ours
        self.target_device = torch.device("cpu")

    return __init__


def _torch_adam(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_train_ds_config(*args: Any, optim_config: Any = None, **kwargs: Any) -> Any:
        if optim_config is not None:
            optim_config = {**optim_config, "params": {**optim_config["params"], "torch_adam": True}}
        return original(*args, optim_config=optim_config, **kwargs)

    return get_train_ds_config


def _with_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda param_dtype: torch.float32 if param_dtype == "fp32" else original(param_dtype)


_TESTED = "openrlhf 0.11.2"
PATCHES = (
    Patch(
        name="openrlhf-gloo-weight-sync",
        target="openrlhf.utils.distributed_util:stateless_init_process_group",
        make_replacement=_gloo_group,
        reason="Weights go through NCCL, whose communicator disables itself without a word where there is none: the "
        "engine would load memory that nothing wrote. A gloo group of the same form carries them.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"0f4de7e6719a99226fee197e96b7aef206eeafd5ebf617bce825fca70ad54ea7"}),
        remove_when="OpenRLHF's weight sync takes a backend that runs on a CPU.",
    ),
    Patch(
        name="openrlhf-replay-buffer-device",
        target="openrlhf.trainer.ppo_utils.replay_buffer:NaiveReplayBuffer.__init__",
        make_replacement=_buffer_on_cpu,
        reason="Formats the current device into `cuda:...`. The device it keeps is used in `sample` only, which "
        "nothing calls.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"ee37108b4b5d9b91cf8f055274cc49fe1fadd6c9a91933869ce207870fa4f060"}),
        remove_when="The buffer takes the device that it is given.",
    ),
    Patch(
        name="openrlhf-torch-adam",
        target="openrlhf.utils.deepspeed.deepspeed:get_train_ds_config",
        make_replacement=_torch_adam,
        reason="DeepSpeed compiles its fused Adam, for minutes, when a job starts; its own option `torch_adam` "
        "computes the same update with torch's.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"2e79fbb11ad675024037ccfe982689998cc90655ec5c9c1bf8315726f020a45e"}),
        remove_when="OpenRLHF lets a user pass DeepSpeed's options.",
    ),
    Patch(
        name="openrlhf-float32",
        target="openrlhf.utils.utils:convert_to_torch_dtype",
        make_replacement=_with_float32,
        reason="--ds.param_dtype knows bf16 and fp16 only, in which most processors train several times slower.",
        tested_versions=_TESTED,
        source_sha256=frozenset({"9c59d2aa51330089e4956072489c1fe2ff429e49b0dde7a70006e5acc406719e"}),
        remove_when="--ds.param_dtype takes fp32.",
    ),
)


def install() -> None:
    """Put everything in place, in a process that trains or controls, before a module of OpenRLHF's is imported.

    Raises:
        UnsupportedDeviceError: There is a GPU: nothing may be stood in for there.
        PatchDriftError: OpenRLHF is another one than the patches were written for.
    """
    if torch.cuda.is_available():
        raise UnsupportedDeviceError(
            "there is a GPU here, but the installed vLLM runs on a CPU: hide the GPU with CUDA_VISIBLE_DEVICES='', or "
            "install a vLLM for GPUs: pip install -r requirements/openrlhf_gpu.txt"
        )
    os.environ[_ACCELERATOR] = "cpu"
    for name, stand_in in _CUDA_CALLS.items():
        setattr(torch.cuda, name, stand_in)
    import deepspeed.ops

    # Else DeepSpeed compiles a shared-memory collective when it starts. Without it, gloo: the same results.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    apply_patches(PATCHES)


def adapt(args: Any, options: Options) -> list[str]:
    """Change those of OpenRLHF's parsed arguments in place that name what only a GPU has; return a line for each.

    Raises:
        ConfigError: An argument asks for something that cannot be had, or was never run, without a GPU.
    """
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
    changes = []
    for group, name, value, is_wanted in wanted:
        if is_wanted:
            changes.append(f"--{group}.{name} is {value}, not {getattr(getattr(args, group), name)}")
            setattr(getattr(args, group), name, value)
    if options.param_dtype == "float32":
        args.ds.param_dtype = "fp32"
    return changes


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
        **{f"--{group}.num_nodes, --{group}.num_gpus_per_node": num > 1 for group, num in _num_slots(args).items()},
    }
    refuse(
        faults,
        "without a GPU, these cannot be had or were never run: {}. Remove them; each part of the job takes one node "
        "with one slot",
    )


def _num_slots(args: Any) -> dict[str, int]:
    """Return those of each part that trains or scores, beside the engines; OpenRLHF leaves the others' at 8."""
    in_use = {
        "actor": True,
        "ref": args.algo.kl.init_coef > 0,
        "critic": args.algo.advantage.estimator == "gae",
        "reward": not (args.reward.remote_url or args.train.agent_func_path),
    }
    groups = {name: getattr(args, name) for name, is_in_use in in_use.items() if is_in_use}
    return {name: group.num_nodes * group.num_gpus_per_node for name, group in groups.items()}


def start_ray(init: Callable[..., Any], given: Mapping[str, Any], args: Any) -> Any:
    """Call `ray.init`: join the cluster that it finds (RAY_ADDRESS, or `ray start` on this machine), or else start one.

    A cluster that runs has its own slots, and must have been started with as many as the job has parts
    (`ray start --num-gpus`). One that is started gets a logical GPU for each part.
    """
    runtime_env = dict(given.get("runtime_env") or {})
    variables = {_ACCELERATOR: "cpu", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **variables}
    given = {**given, "runtime_env": runtime_env}
    num_slots = args.vllm.num_engines + sum(_num_slots(args).values())
    ours = {
        "num_gpus": num_slots,
        "num_cpus": num_slots + 4,  # the controllers and queues
        "object_store_memory": 512 << 20,
        "include_dashboard": False,
    }
    try:
        return init(**given, **ours)
    except ValueError as error:
        if _JOINS not in str(error):
            raise
        return init(**given)
