"""The schemes on a CPU: whose kernel each takes here."""

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cpu.int4 import Int4Linear
from efficient_rollout.drafter.cpu.int8 import Int8Linear, onednn_missing
from efficient_rollout.drafter.cpu.native.library import has_avx512, native_missing
from efficient_rollout.drafter.cpu.quantized_native import Int4NativeLinear, Int8NativeLinear
from efficient_rollout.drafter.scheme import UNQUANTIZED, Scheme


def _int8() -> Scheme:
    # oneDNN's int8 products need VNNI: without it they take ten times as long as float32 ones.
    by_onednn = torch.cpu._is_vnni_supported()
    return Scheme(
        name="int8",
        kernel="oneDNN" if by_onednn else "native AVX2",
        layer=Int8Linear if by_onednn else Int8NativeLinear,
        missing=onednn_missing if by_onednn else native_missing,
        tile=(16, 16),
    )


def _int4(group_size: int) -> Scheme:
    # torch's kernel is written for AVX512; ours was measured where there is none.
    by_torch = has_avx512()
    layer = Int4Linear if by_torch else Int4NativeLinear
    return Scheme(
        name="int4",
        kernel="torch int4pack" if by_torch else "native AVX2",
        layer=lambda weight, bias: layer(weight, bias, group_size=group_size),
        missing=lambda: None if by_torch else native_missing(),
        tile=(16, group_size),
    )


def cpu_schemes(settings: DrafterSettings) -> dict[str, Scheme]:
    """Return every scheme for a CPU, by name."""
    return {
        "int8": _int8(),
        "int4": _int4(settings.group_size),
        "unquantized": UNQUANTIZED,
    }
