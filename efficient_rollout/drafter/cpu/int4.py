"""INT4, weight only: asymmetric, groups of input channels (torch's packed int4 kernel on a CPU)."""

import torch

from efficient_rollout.drafter.packed_linear import PackedLinear

_LARGEST = 15
_MIDDLE = 8
_INNER_K_TILES = 1  # ignored by the CPU kernel


def quantize_int4(
    weight: torch.Tensor, group_size: int, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to nearest, asymmetric, in the kernel's convention: weight ~ (values - 8) * scale + offset.

    Args:
        weight: [out_features, in_features], any float dtype.
        group_size: Input channels that share a scale and an offset; divides in_features.
        scale_dtype: Precision the kernel reads scales and offsets in. Rounding to it comes before the
            integers are chosen, so that they are the nearest for the scales really used.

    Returns:
        int32 values 0..15 [out_features, in_features]; scales and offsets [out_features, num_groups].
    """
    out_features, in_features = weight.shape
    groups = weight.float().view(out_features, in_features // group_size, group_size)
    smallest, largest = groups.aminmax(dim=-1)
    tiny = torch.finfo(torch.float32).tiny
    scales = ((largest - smallest) / _LARGEST).clamp_min(tiny).to(scale_dtype)
    offsets = (smallest + _MIDDLE * scales.float()).to(scale_dtype)
    steps = (groups - offsets.float().unsqueeze(-1)) / scales.float().clamp_min(tiny).unsqueeze(-1)
    values = (steps.round_() + _MIDDLE).clamp_(0, _LARGEST).to(torch.int32)
    return values.view(out_features, in_features), scales, offsets


class Int4Linear(PackedLinear):
    """Holds packed nibbles, and one scale and offset per group in bfloat16.

    Activations are rounded to bfloat16 too.

    torch's kernel is written out for bfloat16 alone: with float32 it takes ten times as long.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int) -> None:
        self.group_size = group_size
        super().__init__(weight, bias)

    def _pack(self, weight: torch.Tensor) -> None:
        values, scales, offsets = quantize_int4(weight, self.group_size, torch.bfloat16)
        self._nibbles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, _INNER_K_TILES)
        # [num_groups, out_features, 2]: the layout the kernel asks for.
        self._scales_and_offsets = torch.stack([scales.t(), offsets.t()], dim=-1).contiguous()

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16).contiguous(), self._nibbles, self.group_size, self._scales_and_offsets
        )
        output = output.to(self.dtype)
        return output if self.bias is None else output + self.bias

    @property
    def num_bytes(self) -> int:
        return self._nibbles.nbytes + self._scales_and_offsets.nbytes + self._bias_bytes()

    def dequantize(self) -> torch.Tensor:
        # In float32 the kernel multiplies exactly by one-hot rows, whatever the layout of the nibbles.
        exact = self._scales_and_offsets.float()
        rows = torch.eye(self.in_features, dtype=torch.float32)
        columns: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._nibbles, self.group_size, exact)
        return columns.t().contiguous()
