"""The schemes of a GPU, which also run, slowly, on a CPU in Triton's interpreter."""

import importlib.util
from typing import Any

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cuda import products
from efficient_rollout.drafter.scheme import UNQUANTIZED, PackedLinear, Scheme


def cuda_schemes(settings: DrafterSettings, capability: products.Capability | None = None) -> dict[str, Scheme]:
    """Return the schemes by name: int4, int8, fp8 and unquantized.

    Args:
        settings: The drafter's part of the settings tree.
        capability: Of the GPU that is asked whether they can run; None: the current one's, which starts CUDA.
    """
    schemes = (
        _scheme("int4", "vLLM's Marlin", (1, 128), capability, "MarlinInt4Linear", group_size=settings.group_size),
        _scheme("int8", "vLLM's CUTLASS int8", (1, 16), capability, "ChannelLinear", values_dtype=torch.int8),
        _scheme("fp8", "vLLM's CUTLASS fp8", (1, 16), capability, "ChannelLinear", values_dtype=torch.float8_e4m3fn),
        UNQUANTIZED,
    )
    return {scheme.name: scheme for scheme in schemes}


def _scheme(
    name: str,
    kernel: str,
    tile: tuple[int, int],  # the kernel's own: outputs are padded by the layers, in the pack alone
    capability: products.Capability | None,
    layer_name: str,
    **options: Any,
) -> Scheme:
    def layer(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        # It loads Triton, which an environment for CPUs has not.
        from efficient_rollout.drafter.cuda import layers

        made: PackedLinear = getattr(layers, layer_name)(weight, bias, **options)
        return made

    return Scheme(name=name, kernel=kernel, layer=layer, missing=lambda: _missing(name, capability), tile=tile)


def _missing(name: str, capability: products.Capability | None) -> str | None:
    """Return why a scheme cannot run; None when it can.

    It runs on a GPU, or with the references of products in an interpreter.
    """
    if importlib.util.find_spec("triton") is None:
        return (
            "its kernels need Triton, which a CUDA build of torch brings; for tests: bash scripts/install.sh --triton"
        )
    import triton

    return None if triton.knobs.runtime.interpret else products.product_missing(name, capability)
