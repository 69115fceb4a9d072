"""The schemes by name: where each runs, which shapes it takes, and how it packs a weight."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from efficient_rollout.config import SCHEME_NAMES, DrafterSettings
from efficient_rollout.drafter.int4 import Int4Linear
from efficient_rollout.drafter.int4_native import Int4NativeLinear
from efficient_rollout.drafter.int8 import Int8Linear, onednn_missing
from efficient_rollout.drafter.int8_native import Int8NativeLinear
from efficient_rollout.drafter.mixed import MixedLinear
from efficient_rollout.drafter.native.library import has_avx512, native_missing
from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.drafter.padded import PaddedLinear
from efficient_rollout.errors import SchemeUnavailableError

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Twice the weights in int8 are as many bytes as a policy in 16 bits has.
_MOST_PADDING = 2
_SHAPES_NAMED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to quantize the policy.

    Attributes:
        name: As in the settings.
        kernel: Whose kernel multiplies, for the log.
        layer: Makes a packed layer from a weight [out_features, in_features] of whole tiles, in any of `FLOAT_DTYPES`,
            and a bias or None; None where the scheme keeps the policy's own layer.
        missing: What the kernel lacks on this device type; None when it can run.
        tile: Outputs and inputs that the kernel computes at a time. Other weights are padded to whole tiles.
    """

    name: str
    kernel: str
    layer: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear] | None
    missing: Callable[[str], str | None]
    tile: tuple[int, int] = (1, 1)

    @property
    def what_it_takes(self) -> str:
        """The policy's layers it packs, in words; weights are outputs x inputs."""
        if self.layer is None:
            return "no layer of the policy"
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        outputs, inputs = self.tile
        return f"{dtypes}; weights that padding to multiples of {outputs} x {inputs} does not more than double"

    def takes(self, out_features: int, in_features: int, dtype: torch.dtype) -> bool:
        """Whether it packs such a weight. Others stay unquantized, and are counted."""
        padded_outputs, padded_inputs = self._padded(out_features, in_features)
        is_worth_it = padded_outputs * padded_inputs <= _MOST_PADDING * out_features * in_features
        return self.layer is not None and dtype in FLOAT_DTYPES and is_worth_it

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        """A packed layer of a weight that it `takes`.

        Args:
            weight: [out_features, in_features]; read, not kept.
            bias: [out_features] or None.
        """
        assert self.layer is not None
        padded_shape = self._padded(*weight.shape)
        if padded_shape == weight.shape:
            return self.layer(weight, bias)
        return PaddedLinear(self.layer, weight, bias, padded_shape=padded_shape)

    def _padded(self, out_features: int, in_features: int) -> tuple[int, int]:
        outputs, inputs = self.tile
        return -(-out_features // outputs) * outputs, -(-in_features // inputs) * inputs


def _only_on_cpu(device_type: str) -> str | None:
    return None if device_type == "cpu" else f"its kernel runs on a CPU, not on {device_type}"


def _int8() -> Scheme:
    # oneDNN's int8 products need VNNI: without it they take ten times as long as float32 ones.
    by_onednn = torch.cpu._is_vnni_supported()
    missing = onednn_missing if by_onednn else native_missing
    return Scheme(
        name="int8",
        kernel="oneDNN" if by_onednn else "native AVX2",
        layer=Int8Linear if by_onednn else Int8NativeLinear,
        missing=lambda device_type: _only_on_cpu(device_type) or missing(),
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
        missing=lambda device_type: _only_on_cpu(device_type) or (None if by_torch else native_missing()),
        tile=(16, group_size),
    )


def _mixed(group_size: int, int4_max_rows: int) -> Scheme:
    few_rows, many_rows = _int4(group_size), _int8()
    few, many = few_rows.layer, many_rows.layer
    assert few is not None
    assert many is not None
    return Scheme(
        name="mixed",
        kernel=f"{few_rows.kernel} to {int4_max_rows} rows, then {many_rows.kernel}",
        layer=lambda weight, bias: MixedLinear(few(weight, bias), many(weight, bias), few_max_rows=int4_max_rows),
        missing=lambda device_type: few_rows.missing(device_type) or many_rows.missing(device_type),
        tile=(math.lcm(few_rows.tile[0], many_rows.tile[0]), math.lcm(few_rows.tile[1], many_rows.tile[1])),
    )


def _unquantized() -> Scheme:
    return Scheme(name="unquantized", kernel="the policy's", layer=None, missing=_only_on_cpu)


def _schemes(settings: DrafterSettings) -> dict[str, Scheme]:
    return {
        "int8": _int8(),
        "int4": _int4(settings.group_size),
        "mixed": _mixed(settings.group_size, settings.int4_max_rows),
        "unquantized": _unquantized(),
    }


def make_scheme(settings: DrafterSettings, device_type: str) -> Scheme:
    """The scheme the settings ask for.

    Args:
        settings: The drafter's part of the settings tree.
        device_type: As in `torch.device.type`.

    Raises:
        SchemeUnavailableError: It has no kernel on this device; the message names the ones that do.
    """
    schemes = _schemes(settings)
    scheme = schemes[settings.scheme]
    missing = scheme.missing(device_type)
    if missing is not None:
        available = [name for name, other in schemes.items() if other.missing(device_type) is None] or ["none"]
        raise SchemeUnavailableError(
            f"drafter.scheme={scheme.name} is not available here: {missing}. Available: {', '.join(available)}."
        )
    return scheme


def require_taken(settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype | None) -> None:
    """Raise SchemeUnavailableError where a scheme that is there to quantize takes no layer of the policy.

    Its drafter would be the policy itself, at the policy's price. The message names the settings that take some.

    Args:
        settings: The drafter's part of the settings tree.
        shapes: [out_features, in_features] of the policy's layers.
        dtype: Of the policy; None where only the shapes are known.
    """
    where = f", in {str(dtype).removeprefix('torch.')}" if dtype else ""
    dtype = dtype or FLOAT_DTYPES[0]
    scheme = _schemes(settings)[settings.scheme]
    if scheme.layer is None or any(scheme.takes(*shape, dtype) for shape in shapes):
        return
    listed = ", ".join(f"{shape[0]} x {shape[1]}" for shape in sorted(set(shapes))[:_SHAPES_NAMED])
    raise SchemeUnavailableError(
        f"drafter.scheme={scheme.name} takes no layer of this policy: its weights (outputs x inputs) are {listed}"
        f"{where}. It takes {scheme.what_it_takes}. Available: "
        f"{', '.join(_takers(settings, shapes, dtype)) or 'none'}; or set efficient_rollout.enabled=false."
    )


def _takers(settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> Iterator[str]:
    """Every scheme that takes one of the layers, with the largest group size it does so with where it is another."""
    sizes = (settings.group_size, *sorted(get_args(DrafterSettings.model_fields["group_size"].annotation))[::-1])
    for name in SCHEME_NAMES:
        for size in sizes:
            scheme = _schemes(settings.model_copy(update={"group_size": size}))[name]
            if any(scheme.takes(*shape, dtype) for shape in shapes):
                yield name if size == settings.group_size else f"{name} with drafter.group_size={size}"
                break
