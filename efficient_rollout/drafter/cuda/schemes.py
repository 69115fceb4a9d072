"""The schemes of a GPU, which also run, slowly, on a CPU in Triton's interpreter."""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.cuda import products
from efficient_rollout.drafter.packed_linear import PackedLinear
from efficient_rollout.drafter.scheme import Scheme

# The kernels' own: outputs are padded by the layers, in the pack alone.
_INT4_TILE, _CHANNEL_TILE = (1, 128), (1, 16)


def cuda_schemes(settings: DrafterSettings, capability: products.Capability | None = None) -> dict[str, Scheme]:
    """Return the schemes by name: int4, int8, fp8 and unquantized.

    Args:
        settings: The drafter's part of the settings tree.
        capability: Of the GPU that is asked whether they can run; None: the current one's, which starts CUDA.
    """
    schemes = (
        _int4(settings.group_size, capability),
        _channels("int8", "Int8ChannelLinear", partial(products.int8_missing, capability)),
        _channels("fp8", "Fp8ChannelLinear", partial(products.fp8_missing, capability)),
        _unquantized(),
    )
    return {scheme.name: scheme for scheme in schemes}


# Layers load Triton, which an environment for CPUs has not: they are imported where one is made.
def _int4(group_size: int, capability: products.Capability | None) -> Scheme:
    def layer(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        from efficient_rollout.drafter.cuda.layers import MarlinInt4Linear

        return MarlinInt4Linear(weight, bias, group_size=group_size)

    return Scheme(
        name="int4",
        kernel="vLLM's Marlin",
        layer=layer,
        missing=lambda: _missing(partial(products.int4_missing, capability)),
        tile=_INT4_TILE,
    )


def _channels(name: str, layer_name: str, product_missing: Callable[[], str | None]) -> Scheme:
    def layer(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        from efficient_rollout.drafter.cuda import layers

        made: PackedLinear = getattr(layers, layer_name)(weight, bias)
        return made

    return Scheme(
        name=name,
        kernel=f"vLLM's CUTLASS {name}",
        layer=layer,
        missing=lambda: _missing(product_missing),
        tile=_CHANNEL_TILE,
    )


def _unquantized() -> Scheme:
    return Scheme(name="unquantized", kernel="the policy's", layer=None, missing=lambda: None)


def _missing(product_missing: Callable[[], str | None]) -> str | None:
    """Return why a scheme cannot run; None when it can.

    It runs on a GPU, or with the references of products in an interpreter.
    """
    if importlib.util.find_spec("triton") is None:
        return (
            "its kernels need Triton, which a CUDA build of torch brings; for tests: bash scripts/install.sh --triton"
        )
    import triton

    return None if triton.knobs.runtime.interpret else product_missing()
