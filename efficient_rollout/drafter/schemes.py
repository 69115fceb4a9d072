"""The schemes by name, on each type of device. Those of a GPU also run, slowly, on a CPU in Triton's interpreter."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from efficient_rollout.config import SCHEME_NAMES, DrafterSettings
from efficient_rollout.drafter.cpu.layers import Int4NativeLinear, Int8NativeLinear
from efficient_rollout.drafter.cpu.native.library import has_vnni, native_missing
from efficient_rollout.drafter.cuda.products import Capability, product_missing
from efficient_rollout.drafter.scheme import FLOAT_DTYPES, UNQUANTIZED, PackedLinear, Scheme
from efficient_rollout.errors import SchemeUnavailableError

_SHAPES_NAMED = 6


def make_scheme(settings: DrafterSettings, device_type: str, capability: Capability | None = None) -> Scheme:
    """Return the scheme the settings ask for.

    Args:
        settings: The drafter's part of the settings tree.
        device_type: As in `torch.device.type`.
        capability: Of a GPU's instructions, where it is known: asking for it starts CUDA in this process.

    Raises:
        SchemeUnavailableError: It has no kernel on this device; the message names the ones that do.
    """
    schemes = schemes_on(device_type, settings, capability)
    scheme = schemes.get(settings.scheme)
    missing = f"there is none for {device_type}" if scheme is None else scheme.missing()
    if scheme is None or missing is not None:
        available = [name for name, other in schemes.items() if other.missing() is None] or ["none"]
        raise SchemeUnavailableError(
            f"drafter.scheme={settings.scheme} is not available here: {missing}. Available: {', '.join(available)}."
        )
    return scheme


def schemes_on(device_type: str, settings: DrafterSettings, capability: Capability | None = None) -> dict[str, Scheme]:
    """Return those there are for a type of device, by name, whether or not their kernels can run here."""
    if device_type == "cpu":
        return cpu_schemes(settings)
    return cuda_schemes(settings, capability) if device_type == "cuda" else {}


def cpu_schemes(settings: DrafterSettings) -> dict[str, Scheme]:
    """Return every scheme for a CPU, by name: this package's own kernels."""
    kernel, size = "native VNNI" if has_vnni() else "native AVX2", settings.group_size

    def int4(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        return Int4NativeLinear(weight, bias, group_size=size)

    schemes = (
        Scheme(name="int8", kernel=kernel, layer=Int8NativeLinear, missing=native_missing, tile=(16, 16)),
        Scheme(name="int4", kernel=kernel, layer=int4, missing=native_missing, tile=(16, size)),
        UNQUANTIZED,
    )
    return {scheme.name: scheme for scheme in schemes}


def cuda_schemes(settings: DrafterSettings, capability: Capability | None = None) -> dict[str, Scheme]:
    """Return every scheme for a GPU, by name; asked whether they run without a capability, they start CUDA for it."""

    # The tiles are the kernels' own: outputs are padded by the layers, in the pack alone.
    def scheme(name: str, kernel: str, num_inputs: int, layer_name: str, **options: Any) -> Scheme:
        def layer(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
            # It loads Triton, which an environment for CPUs has not.
            from efficient_rollout.drafter.cuda import layers

            made: PackedLinear = getattr(layers, layer_name)(weight, bias, **options)
            return made

        return Scheme(
            name=name, kernel=kernel, layer=layer, missing=lambda: _missing(name, capability), tile=(1, num_inputs)
        )

    schemes = (
        scheme("int4", "vLLM's Marlin", 128, "MarlinInt4Linear", group_size=settings.group_size),
        scheme("int8", "vLLM's CUTLASS int8", 16, "ChannelLinear", values_dtype=torch.int8),
        scheme("fp8", "vLLM's CUTLASS fp8", 16, "ChannelLinear", values_dtype=torch.float8_e4m3fn),
        UNQUANTIZED,
    )
    return {scheme.name: scheme for scheme in schemes}


def _missing(name: str, capability: Capability | None) -> str | None:
    """Return why a GPU's scheme cannot run; in an interpreter it does, with the references of products."""
    if importlib.util.find_spec("triton") is None:
        return (
            "its kernels need Triton, which a CUDA build of torch brings; for tests: bash scripts/install.sh --triton"
        )
    import triton

    return None if triton.knobs.runtime.interpret else product_missing(name, capability)


def require_taken(
    settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype | None, device_type: str = "cpu"
) -> None:
    """Raise SchemeUnavailableError where a scheme that is there to quantize takes no layer of the policy.

    Its drafter would be the policy itself, at the policy's price. The message names the settings that take some.

    Args:
        settings: The drafter's part of the settings tree.
        shapes: [out_features, in_features] of the policy's layers.
        dtype: Of the policy; None where only the shapes are known.
        device_type: As in `torch.device.type`.
    """
    where = f", in {str(dtype).removeprefix('torch.')}" if dtype else ""
    dtype = dtype or FLOAT_DTYPES[0]
    scheme = schemes_on(device_type, settings)[settings.scheme]
    if scheme.layer is None or any(scheme.takes(*shape, dtype) for shape in shapes):
        return
    listed = ", ".join(f"{shape[0]} x {shape[1]}" for shape in sorted(set(shapes))[:_SHAPES_NAMED])
    raise SchemeUnavailableError(
        f"drafter.scheme={scheme.name} takes no layer of this policy: its weights (outputs x inputs) are {listed}"
        f"{where}. It takes {scheme.what_it_takes}. Available: "
        f"{', '.join(_takers(settings, shapes, dtype, device_type)) or 'none'}; or set efficient_rollout.enabled=false."
    )


def _takers(
    settings: DrafterSettings, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device_type: str
) -> Iterator[str]:
    """Yield every scheme that takes one of the layers, if need be with another group size, the largest that does."""
    sizes = (settings.group_size, *sorted(get_args(DrafterSettings.model_fields["group_size"].annotation))[::-1])
    for name in SCHEME_NAMES:
        for size in sizes:
            scheme = schemes_on(device_type, settings.model_copy(update={"group_size": size})).get(name)
            if scheme is not None and any(scheme.takes(*shape, dtype) for shape in shapes):
                yield name if size == settings.group_size else f"{name} with drafter.group_size={size}"
                break
