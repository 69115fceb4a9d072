"""Packed layers on a GPU. Buffers are made once: captured CUDA graphs read them, so `requantize` only writes into them.

It writes all of each, padding too: an engine that sleeps may discard what they hold, and wakes them where they were.
"""

from abc import abstractmethod

import torch

from efficient_rollout.drafter.cuda import layout, products, quantize
from efficient_rollout.drafter.scheme import PackedLinear

_CHANNEL_MULTIPLE = 16  # of inputs and of outputs, for products of 8-bit weights


class _FixedLinear(PackedLinear):
    """Keeps the address of each of its tensors. Whether it has a bias is decided once."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._has_bias = bias is not None
        super().__init__(weight, bias)

    def requantize(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take new values in place, as `PackedLinear.requantize`; ValueError also where a bias comes or goes."""
        if (bias is not None) != self._has_bias:
            raise ValueError(f"this layer was made {'with' if self._has_bias else 'without'} a bias: make another one")
        super().requantize(weight, bias)
        if self.bias is not None:
            self._write_bias(self.bias)

    @abstractmethod
    def _write_bias(self, bias: torch.Tensor) -> None:
        """Put [out_features] where the kernel reads it."""


class MarlinInt4Linear(_FixedLinear):
    """Multiplies 4-bit weights, with a zero point per group, by 16-bit activations, with vLLM's Marlin kernel.

    Args:
        weight: [outputs, inputs], any number of outputs, inputs a multiple of 128; bfloat16, float16 or float32.
        bias: [outputs] or None.
        group_size: Inputs that share a scale and a zero point: 32, 64 or 128.

    Raises:
        ValueError: Another shape, dtype or group size.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int) -> None:
        self.group_size = group_size
        dtype = products.multiplied_in(weight.dtype)
        self._buffers = layout.empty_pack(weight.shape, group_size, dtype, weight.device, has_bias=bias is not None)
        self._locks = products.marlin_locks(weight.device)
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        quantize.quantize_int4(weight, self._buffers)
        self._locks.zero_()

    def _write_bias(self, bias: torch.Tensor) -> None:
        layout.write_bias(self._buffers, bias)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return products.multiply_int4(rows, self._buffers, self._locks)

    @property
    def num_bytes(self) -> int:
        return self._buffers.num_bytes + self._locks.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        # The kernel rounds a weight to its activations' dtype before it multiplies.
        return layout.dequantize(self._buffers).to(self._buffers.scales.dtype).float()


class ChannelLinear(_FixedLinear):
    """Multiplies 8-bit weights, with a scale per output, by 8-bit activations, with one per row, by vLLM's CUTLASS.

    Args:
        weight: [outputs, inputs], any number of outputs, inputs a multiple of 16; bfloat16, float16 or float32.
        bias: [outputs] or None.
        values_dtype: torch.int8 or torch.float8_e4m3fn.

    Raises:
        ValueError: Another shape or dtype.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, values_dtype: torch.dtype) -> None:
        outputs, inputs = weight.shape
        if inputs % _CHANNEL_MULTIPLE:
            raise ValueError(
                f"the kernel takes multiples of {_CHANNEL_MULTIPLE} inputs, got {inputs}: use PaddedLinear"
            )
        wide = -(-outputs // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE
        self._values = torch.empty(wide, inputs, dtype=values_dtype, device=weight.device)
        self._scales = torch.empty(wide, 1, dtype=torch.float32, device=weight.device)
        self._wide_bias: torch.Tensor | None = None
        if bias is not None:
            self._wide_bias = torch.empty(wide, dtype=products.multiplied_in(weight.dtype), device=weight.device)
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        quantize.quantize_channels(weight, self._values, self._scales)

    def _write_bias(self, bias: torch.Tensor) -> None:
        assert self._wide_bias is not None
        self._wide_bias.zero_()[: self.out_features].copy_(bias)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        product = products.multiply_channels(rows, self._values, self._scales, self._wide_bias)
        return product[:, : self.out_features].contiguous()

    @property
    def num_bytes(self) -> int:
        wide_bias = 0 if self._wide_bias is None else self._wide_bias.nbytes
        return self._values.nbytes + self._scales.nbytes + wide_bias + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        return (self._values.float() * self._scales)[: self.out_features]
