"""Seconds of one product by kernel and number of rows, in this process, with weights that come from memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cpu.layers import Float32NativeLinear
from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.errors import SchemeUnavailableError
from efficient_rollout.tables import spread

# As many weights in rotation as no cache of today's processors holds.
_ROTATION_BYTES = 256 << 20

Product = Callable[[torch.Tensor], torch.Tensor]


def time_kernels(
    schemes: Sequence[str], *, outputs: int, inputs: int, rows: Sequence[int], rounds: int, dtype: str
) -> list[dict[str, Any]]:
    """Time every kernel that runs here, in turns; schemes without one are left out.

    Args:
        schemes: Names.
        outputs: Of the weight.
        inputs: Of the weight.
        rows: Of the activations.
        rounds: Of all kernels at each number of rows.
        dtype: Of the policy.

    Returns:
        Rows of `kernel` (a scheme's name and whose kernel it is, or `policy, stock` and `policy, native`), number of
        `rows`, and `seconds` of one product, as `tables.spread` over the rounds.
    """
    current_platform.import_kernels()
    policy_dtype = getattr(torch, dtype)
    weight_bytes = outputs * inputs * torch.finfo(policy_dtype).bits // 8
    num_weights = max(2, _ROTATION_BYTES // weight_bytes)
    weights = [torch.randn(outputs, inputs).to(policy_dtype) / 32 for _ in range(num_weights)]
    kernels = {name: [make(weight) for weight in weights] for name, make in _kernels(schemes, dtype)}
    found = []
    for num_rows in rows:
        x = torch.randn(num_rows, inputs).to(policy_dtype)
        seconds: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(rounds + 1):
            for name, products in kernels.items():
                started = time.perf_counter()
                for product in products:
                    product(x)
                seconds[name].append((time.perf_counter() - started) / len(products))
        found += [{"kernel": name, "rows": num_rows, "seconds": spread(each[1:])} for name, each in seconds.items()]
    return found


def _kernels(schemes: Sequence[str], dtype: str) -> Iterator[tuple[str, Callable[[torch.Tensor], Product]]]:
    yield "policy, stock", _stock
    if dtype == "float32" and native_missing() is None:
        yield "policy, native", Float32NativeLinear
    for name in schemes:
        with suppress(SchemeUnavailableError):
            scheme = make_scheme(DrafterSettings.model_validate({"scheme": name}), "cpu")
            if scheme.layer is not None:
                yield f"{name}, {scheme.kernel}", partial(scheme.pack, bias=None)


def _stock(weight: torch.Tensor) -> Product:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)
