"""The schemes by name: where each runs, which shapes it takes, and how it packs a weight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.int4 import Int4Linear
from efficient_rollout.drafter.int8 import Int8Linear
from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.errors import SchemeUnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to quantize the policy.

    Attributes:
        name: As in the settings.
        pack: Makes a packed layer from a weight [out_features, in_features] and a bias or None; None where
            the scheme keeps the policy's own layer.
        supports: Whether the kernel takes [out_features, in_features] in this dtype. Layers it does not take
            stay unquantized, and are counted.
        missing: What the kernel lacks on this device type; None when it can run.
    """

    name: str
    pack: Callable[[torch.Tensor, torch.Tensor | None], PackedLinear] | None
    supports: Callable[[int, int, torch.dtype], bool]
    missing: Callable[[str], str | None]


_FLOAT_DTYPES = (torch.bfloat16, torch.float32)


def _int8_missing(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"its kernel runs on a CPU, not on {device_type}"
    # The operator is registered by vLLM's CPU build; other builds register an empty namespace.
    if not hasattr(torch.ops._C, "create_onednn_scaled_mm_handler"):
        return "vLLM's oneDNN kernels are not loaded: install a CPU build of vLLM with AVX2 or better"
    return None


def _int4_missing(device_type: str) -> str | None:
    return None if device_type == "cpu" else f"its kernel runs on a CPU, not on {device_type}"


def _int8() -> Scheme:
    return Scheme(
        name="int8",
        pack=Int8Linear,
        supports=lambda out_features, in_features, dtype: (
            dtype in _FLOAT_DTYPES and out_features % 16 == 0 and in_features % 16 == 0
        ),
        missing=_int8_missing,
    )


def _int4(group_size: int) -> Scheme:
    return Scheme(
        name="int4",
        pack=lambda weight, bias: Int4Linear(weight, bias, group_size=group_size),
        supports=lambda out_features, in_features, dtype: (
            dtype in _FLOAT_DTYPES and out_features % 16 == 0 and in_features % group_size == 0
        ),
        missing=_int4_missing,
    )


def _bf16() -> Scheme:
    return Scheme(name="bf16", pack=None, supports=lambda *_: False, missing=lambda _: None)


SCHEME_NAMES = ("int8", "int4", "bf16")


def make_scheme(settings: DrafterSettings, device_type: str) -> Scheme:
    """The scheme the settings ask for.

    Args:
        settings: The drafter's part of the settings tree.
        device_type: As in `torch.device.type`.

    Raises:
        SchemeUnavailableError: It has no kernel on this device; the message names the ones that do.
    """
    schemes = {"int8": _int8(), "int4": _int4(settings.group_size), "bf16": _bf16()}
    scheme = schemes[settings.scheme]
    missing = scheme.missing(device_type)
    if missing is not None:
        available = [name for name, other in schemes.items() if other.missing(device_type) is None]
        raise SchemeUnavailableError(
            f"drafter.scheme={scheme.name} is not available here: {missing}. Available: {', '.join(available)}."
        )
    return scheme
