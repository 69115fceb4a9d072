"""INT8: symmetric per output channel, activations quantized per row at run time (W8A8, oneDNN on a CPU)."""

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear

_LARGEST = 127.0
# Shapes whose compiled primitives oneDNN keeps per layer: one per number of rows seen.
_PRIMITIVE_CACHE_SIZE = 32


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to nearest, symmetric, one scale per output channel.

    Args:
        weight: [out_features, in_features], any float dtype.

    Returns:
        int8 values [out_features, in_features] and float32 scales [out_features, 1]; weight ~ values * scales.
    """
    weight = weight.float()
    scales = (weight.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    values = (weight / scales).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return values, scales


def onednn_missing() -> str | None:
    """Return what oneDNN lacks here; None when it can run."""
    # The operator is registered by vLLM's CPU build; other builds register an empty namespace.
    if not hasattr(torch.ops._C, "create_onednn_scaled_mm_handler"):
        return "vLLM's oneDNN kernels are not loaded: install a CPU build of vLLM"
    return None


class Int8Linear(PackedLinear):
    """Holds a oneDNN handler. It owns the reordered int8 weight, and reads `_scales` through a raw pointer."""

    _handler: torch.Tensor | None = None

    def _pack(self, weight: torch.Tensor) -> None:
        values, scales = quantize_int8(weight)
        pointer = torch.ops._C.create_onednn_scaled_mm_handler(
            values.t(), scales, self.dtype, True, False, _PRIMITIVE_CACHE_SIZE
        )
        self._release()
        # A tensor, so that a compiler does not bake the address into a graph.
        self._handler = torch.tensor(pointer, dtype=torch.int64)
        self._scales = scales

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        values = torch.empty_like(rows, dtype=torch.int8, memory_format=torch.contiguous_format)
        scales = torch.empty((rows.shape[0], 1), dtype=torch.float32)
        torch.ops._C.dynamic_scaled_int8_quant(values, rows.contiguous(), scales, None)
        return self._multiply_int8(values, scales, self.bias)

    def _multiply_int8(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        output = torch.empty((values.shape[0], self.out_features), dtype=self.dtype)
        torch.ops._C.onednn_scaled_mm(output, values, scales, None, None, bias, self._handler)
        return output

    @property
    def num_bytes(self) -> int:
        return self.out_features * self.in_features + self._scales.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        # One-hot int8 rows pick single columns out of the opaque pack. Unit scales keep the integers exact
        # in bfloat16 too: they are at most 127.
        scales = self._scales.clone()
        self._scales.fill_(1.0)
        rows = torch.eye(self.in_features, dtype=torch.int8)
        integers = self._multiply_int8(rows, torch.ones(self.in_features, 1), None)
        self._scales.copy_(scales)
        return integers.t().float() * scales

    def _release(self) -> None:
        if self._handler is not None:
            torch.ops._C.release_dnnl_matmul_handler(self._handler.item())
            self._handler = None

    def __del__(self) -> None:
        self._release()
