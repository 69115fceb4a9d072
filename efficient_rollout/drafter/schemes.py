"""The schemes by name: where each runs, which shapes it takes, and how it packs a weight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.int4 import Int4Linear
from efficient_rollout.drafter.int4_native import Int4NativeLinear
from efficient_rollout.drafter.int8 import Int8Linear, onednn_missing
from efficient_rollout.drafter.int8_native import Int8NativeLinear
from efficient_rollout.drafter.mixed import MixedLinear
from efficient_rollout.drafter.native.library import has_avx512, native_missing
from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.errors import SchemeUnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to quantize the policy.

    Attributes:
        name: As in the settings.
        kernel: Whose kernel multiplies, for the log.
        pack: Makes a packed layer from a weight [out_features, in_features] and a bias or None; None where
            the scheme keeps the policy's own layer.
        supports: Whether the kernel takes [out_features, in_features] in this dtype. Layers it does not take
            stay unquantized, and are counted.
        missing: What the kernel lacks on this device type; None when it can run.
    """

    name: str
    kernel: str
    pack: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear] | None
    supports: Callable[[int, int, torch.dtype], bool]
    missing: Callable[[str], str | None]


_FLOAT_DTYPES = (torch.bfloat16, torch.float32)


def _only_on_cpu(device_type: str) -> str | None:
    return None if device_type == "cpu" else f"its kernel runs on a CPU, not on {device_type}"


def _int8() -> Scheme:
    # oneDNN's int8 products need VNNI: without it they take ten times as long as float32 ones.
    by_onednn = torch.cpu._is_vnni_supported()
    missing = onednn_missing if by_onednn else native_missing
    return Scheme(
        name="int8",
        kernel="oneDNN" if by_onednn else "native AVX2",
        pack=Int8Linear if by_onednn else Int8NativeLinear,
        supports=lambda out_features, in_features, dtype: (
            dtype in _FLOAT_DTYPES and out_features % 16 == 0 and in_features % 16 == 0
        ),
        missing=lambda device_type: _only_on_cpu(device_type) or missing(),
    )


def _int4(group_size: int) -> Scheme:
    # torch's kernel is written for AVX512; ours was measured where there is none.
    by_torch = has_avx512()
    layer = Int4Linear if by_torch else Int4NativeLinear
    return Scheme(
        name="int4",
        kernel="torch int4pack" if by_torch else "native AVX2",
        pack=lambda weight, bias: layer(weight, bias, group_size=group_size),
        supports=lambda out_features, in_features, dtype: (
            dtype in _FLOAT_DTYPES and out_features % 16 == 0 and in_features % group_size == 0
        ),
        missing=lambda device_type: _only_on_cpu(device_type) or (None if by_torch else native_missing()),
    )


def _mixed(group_size: int, int4_max_rows: int) -> Scheme:
    few_rows, many_rows = _int4(group_size), _int8()
    few, many = few_rows.pack, many_rows.pack
    assert few is not None
    assert many is not None
    return Scheme(
        name="mixed",
        kernel=f"{few_rows.kernel} to {int4_max_rows} rows, then {many_rows.kernel}",
        pack=lambda weight, bias: MixedLinear(few(weight, bias), many(weight, bias), few_max_rows=int4_max_rows),
        supports=lambda *layer: few_rows.supports(*layer) and many_rows.supports(*layer),
        missing=lambda device_type: few_rows.missing(device_type) or many_rows.missing(device_type),
    )


def _unquantized() -> Scheme:
    return Scheme(name="unquantized", kernel="the policy's", pack=None, supports=lambda *_: False, missing=_only_on_cpu)


def make_scheme(settings: DrafterSettings, device_type: str) -> Scheme:
    """The scheme the settings ask for.

    Args:
        settings: The drafter's part of the settings tree.
        device_type: As in `torch.device.type`.

    Raises:
        SchemeUnavailableError: It has no kernel on this device; the message names the ones that do.
    """
    schemes = {
        "int8": _int8(),
        "int4": _int4(settings.group_size),
        "mixed": _mixed(settings.group_size, settings.int4_max_rows),
        "unquantized": _unquantized(),
    }
    scheme = schemes[settings.scheme]
    missing = scheme.missing(device_type)
    if missing is not None:
        available = [name for name, other in schemes.items() if other.missing(device_type) is None] or ["none"]
        raise SchemeUnavailableError(
            f"drafter.scheme={scheme.name} is not available here: {missing}. Available: {', '.join(available)}."
        )
    return scheme
