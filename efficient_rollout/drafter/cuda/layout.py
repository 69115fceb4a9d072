"""Where vLLM's Marlin W4A16 product reads an int4 weight, in closed form: the buffers, and how to read them back.

Marlin cuts a weight into tiles of 64 outputs x 16 inputs, of 128 words of 8 values. Output `16 j + 8 b + c` and input
`8 h + 2 a + l` of a tile are nibble `4 l + 2 b + h` of its word `16 c + 4 a + j`.
"""

from dataclasses import dataclass

import torch

TILE_OUTPUTS, TILE_INPUTS = 64, 16
# Marlin's smallest share of a product for one multiprocessor.
INPUTS_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class MarlinPack:
    """Holds an int4 weight as Marlin reads it; its tensors are made once, and keep their addresses.

    `wide` is the number of outputs, padded to whole tiles, with values, scales and zero points of 0.

    Attributes:
        values: int32 [inputs / 16, 2 * wide]: eight values 0..15 in a word.
        scales: bfloat16 or float16 [inputs / group_size, wide].
        zeros: int32 [inputs / group_size, wide / 8]: eight zero points 0..15 in a word.
        bias: Of the scales' dtype [wide], in an order of its own, or None.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor | None
    num_outputs: int

    @property
    def num_inputs(self) -> int:
        """Return the number of the weight's inputs."""
        return self.values.shape[0] * TILE_INPUTS

    @property
    def wide(self) -> int:
        """Return the number of outputs, padded to whole tiles."""
        return self.scales.shape[1]

    @property
    def group_size(self) -> int:
        """Return the number of inputs that share a scale and a zero point."""
        return self.num_inputs // self.scales.shape[0]

    @property
    def num_bytes(self) -> int:
        """Return the memory held."""
        tensors = (self.values, self.scales, self.zeros, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def padded_outputs(num_outputs: int) -> int:
    """Round `num_outputs` up to whole tiles."""
    return -(-num_outputs // TILE_OUTPUTS) * TILE_OUTPUTS


def empty_pack(
    weight_shape: tuple[int, int],
    group_size: int,
    scale_dtype: torch.dtype,
    device: torch.device | str,
    *,
    has_bias: bool = False,
) -> MarlinPack:
    """Make buffers for a weight, not yet filled.

    Args:
        weight_shape: Outputs, inputs.
        group_size: Inputs that share a scale and a zero point: 32, 64 or 128.
        scale_dtype: Of the activations: bfloat16 or float16.
        device: Where the weight is.
        has_bias: Whether there is room for a bias.

    Raises:
        ValueError: Marlin has no product for so many inputs.
    """
    num_outputs, num_inputs = weight_shape
    if num_inputs % INPUTS_MULTIPLE or not num_inputs:
        raise ValueError(f"Marlin takes multiples of {INPUTS_MULTIPLE} inputs, got {num_inputs}: use PaddedLinear")
    wide, num_groups = padded_outputs(num_outputs), num_inputs // group_size
    return MarlinPack(
        values=torch.empty(num_inputs // TILE_INPUTS, 2 * wide, dtype=torch.int32, device=device),
        scales=torch.empty(num_groups, wide, dtype=scale_dtype, device=device),
        zeros=torch.empty(num_groups, wide // 8, dtype=torch.int32, device=device),
        bias=torch.empty(wide, dtype=scale_dtype, device=device) if has_bias else None,
        num_outputs=num_outputs,
    )


def write_bias(pack: MarlinPack, bias: torch.Tensor) -> None:
    """Put a bias [num_outputs] of any float dtype where Marlin reads it; `pack` has room for one."""
    assert pack.bias is not None
    order = _order(pack.wide, pack.bias.device, is_one_group=True)
    pack.bias.zero_().index_copy_(0, order[: pack.num_outputs], bias.to(pack.bias.dtype))


def read_bias(pack: MarlinPack) -> torch.Tensor | None:
    """Return the bias, of the scales' dtype [num_outputs], or None."""
    if pack.bias is None:
        return None
    return pack.bias[_order(pack.wide, pack.bias.device, is_one_group=True)[: pack.num_outputs]]


def dequantize(pack: MarlinPack) -> torch.Tensor:
    """Return (value - zero point) * scale, exactly: float32 [num_outputs, num_inputs]."""
    order = _order(pack.wide, pack.scales.device, is_one_group=pack.scales.shape[0] == 1)
    zeros, scales = (
        each.float().repeat_interleave(pack.group_size, 1) for each in (_read_zeros(pack), pack.scales[:, order].t())
    )
    return ((_read_values(pack).float() - zeros) * scales)[: pack.num_outputs]


def _order(wide: int, device: torch.device, *, is_one_group: bool) -> torch.Tensor:
    """Return where Marlin reads each output's scale: int64 [wide].

    Where a group spans all inputs, it scales sums instead of weights, and these lie in another order, as a bias does.
    """
    output = torch.arange(wide, device=device)
    if is_one_group:
        within = output % 32
        return output - within + within % 8 // 2 * 8 + within // 8 * 2 + within % 2
    within = output % TILE_OUTPUTS
    return output - within + within % 8 * 8 + within // 8


def _read_values(pack: MarlinPack) -> torch.Tensor:
    """Read the values: int32 0..15 [wide, num_inputs]."""
    word = torch.arange(128, device=pack.values.device)[:, None]
    nibble = torch.arange(8, device=pack.values.device)[None, :]
    nibbles = pack.values.view(-1, pack.wide // TILE_OUTPUTS, 128, 1) >> (4 * nibble) & 15
    output = 16 * (word % 4) + 8 * (nibble // 2 % 2) + word // 16
    row = 8 * (nibble % 2) + 2 * (word // 4 % 4) + nibble // 4
    tiles = torch.empty_like(nibbles).flatten(2)
    tiles[..., (output * TILE_INPUTS + row).flatten()] = nibbles.flatten(2)
    # [tiles of outputs, 64, tiles of inputs, 16], once permuted.
    return tiles.unflatten(2, (TILE_OUTPUTS, TILE_INPUTS)).permute(1, 2, 0, 3).reshape(pack.wide, pack.num_inputs)


def _read_zeros(pack: MarlinPack) -> torch.Tensor:
    """Read the zero points: int32 0..15 [wide, groups]."""
    output = torch.arange(pack.wide, device=pack.zeros.device)
    eighth = output % TILE_OUTPUTS // 8
    words = pack.zeros[:, output // TILE_OUTPUTS * 8 + output % 8]
    return ((words >> (4 * (eighth // 2 + 4 * (eighth % 2)))) & 15).t()
