"""Step "requantizing": seconds for all layers of a policy of 7 B parameters, and their share of the bandwidth."""

import time
from collections.abc import Callable

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cuda.schemes import cuda_schemes
from efficient_rollout.gpu_check.stand import Measured, Stand

_SCHEMES = ("int4", "int8", "fp8")
_ROUNDS = 3
_COPIED_BYTES = 1 << 30
_STEP = 2.0**-9


def measure_requantizing(stand: Stand) -> Measured:
    """Requantize each of a policy's shapes again and again, in bfloat16.

    Bytes are those read and those written.
    """
    measured: Measured = {"copy_bytes_per_second": round(_copy_bandwidth(stand))}
    for scheme in _SCHEMES:
        if scheme == "fp8" and stand.is_gpu and torch.cuda.get_device_capability() < (8, 9):
            continue
        seconds = num_bytes = 0.0
        for outputs, inputs, count in stand.sizes.layers:
            weight = torch.randn(outputs, inputs, device=stand.device).mul_(_STEP).bfloat16()
            layer = cuda_schemes(DrafterSettings(group_size=128))[scheme].pack(weight, None)
            seconds += count * _median_seconds(stand, lambda layer=layer, weight=weight: layer.requantize(weight))
            num_bytes += count * (weight.nbytes + layer.num_bytes)
            del weight, layer
        measured[scheme] = {
            "seconds": round(seconds, 4),
            "bytes": int(num_bytes),
            "bandwidth_share": float(f"{num_bytes / seconds / measured['copy_bytes_per_second']:.3g}"),
        }
    return measured


def _copy_bandwidth(stand: Stand) -> float:
    """Return the bytes a second, read and written, of a plain copy."""
    size = _COPIED_BYTES if stand.is_gpu else 1 << 20
    source = torch.empty(size, dtype=torch.uint8, device=stand.device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(stand, lambda: target.copy_(source))


def _median_seconds(stand: Stand, work: Callable[[], object]) -> float:
    """Return the median seconds of some rounds behind one that compiles."""
    seconds = []
    for _ in range(_ROUNDS + 1):
        stand.wait()
        started = time.perf_counter()
        work()
        stand.wait()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[_ROUNDS // 2]
