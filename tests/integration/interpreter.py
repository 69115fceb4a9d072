"""Prepare this process to run vLLM's V2 model runner in Triton's interpreter; to be imported before vLLM."""

import os
import sys
import types

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before its interpreter was chosen: run these tests with `pytest --triton`")
os.environ.update(
    TRITON_INTERPRET="1",
    TORCHDYNAMO_DISABLE="1",
    VLLM_USE_V2_MODEL_RUNNER="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_CI_ENV="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
)

from triton.backends import backends

# vLLM takes Triton on a CPU where Triton has a backend of that name. The interpreter needs none.
backends.setdefault("cpu", types.SimpleNamespace(driver=None, compiler=None))

from efficient_rollout.verl_plugin import metadata_bridge  # noqa: E402 - Triton first

metadata_bridge.install()
