"""Triton kernels that quantize a weight in one pass, in place, into what a GPU's products read.

They compute the same bits on a GPU and in Triton's interpreter on a CPU: every division is IEEE's, every rounding to
even, and narrow floats are made of their bits, because the interpreter (3.6 to 3.8) truncates to bfloat16 and misreads
subnormal ones. Weights are finite: a NaN's code is not defined.
"""

import torch
import triton
import triton.language as tl

from efficient_rollout.drafter.cuda.layout import TILE_OUTPUTS, MarlinPack
from efficient_rollout.drafter.cuda.products import LARGEST_FP8, LARGEST_INT8
from efficient_rollout.drafter.scheme import FLOAT_DTYPES

# With fewer warps the int4 kernel needs so many registers that hardly two programs share a multiprocessor.
INT4_WARPS, CHANNEL_WARPS = 8, 4
# Outputs x inputs that a program of the channel kernel takes at a time. An interpreter is fast on few large ones.
CHANNEL_TILE, INTERPRETED_CHANNEL_TILE = (1, 1024), (64, 256)
# Adding and subtracting it rounds a float32 below 2**22 to an integer, ties to even.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def _rint(x):
    return (x + _ROUND) - _ROUND


@triton.jit
def _widen(x):
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def _rounded_to(x, DTYPE: tl.constexpr):
    """Return, as float32, the nearest number that DTYPE holds."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    else:
        return x.to(DTYPE).to(tl.float32)


@triton.jit
def _fp8_bits(x):
    """Return the bits of float32 within +-448, rounded to e4m3."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = _rint(magnitude.to(tl.float32, bitcast=True) * 512.0).to(tl.int32)
    code = tl.where(magnitude >= (121 << 23), normal, subnormal)  # 2**-6 is the smallest normal number
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def int4_kernel(
    weight,  # [num_outputs, inputs], rows `stride` apart
    values,  # int32 [inputs / 16, 2 * wide]
    scales,  # [inputs / GROUP, wide]
    zeros,  # int32 [inputs / GROUP, wide / 8]
    num_outputs,
    wide,
    stride,
    GROUP: tl.constexpr,
    IS_ONE_GROUP: tl.constexpr,
):
    """Quantize 64 outputs x one group in each program, and write them where `layout` says."""
    column, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, 64)
    row = tl.arange(0, GROUP)
    output = column * 64 + lane
    is_real = output < num_outputs
    at = output.to(tl.int64)[:, None] * stride + (group * GROUP + row)[None, :]
    w = _widen(tl.load(weight + at, mask=is_real[:, None], other=0.0))

    # Zero is in every range. 2**-14 is float16's smallest normal number; no weight is as small as 1e-30.
    low, high = tl.minimum(tl.min(w, 1), 0.0), tl.maximum(tl.max(w, 1), 0.0)
    smallest_step: tl.constexpr = 6.103515625e-05 if scales.dtype.element_ty == tl.float16 else 1e-30
    step = tl.maximum(tl.div_rn(high - low, tl.full([64], 15.0, tl.float32)), smallest_step)
    # Rounded to what the product multiplies by before integers are chosen, so that they are the nearest for that one.
    step = _rounded_to(step, scales.dtype.element_ty)
    zero = tl.minimum(_rint(tl.div_rn(-low, step)), 15.0)
    steps = _rint(tl.div_rn(w, tl.broadcast_to(step[:, None], [64, GROUP])))
    q = tl.minimum(tl.maximum(steps + zero[:, None], 0.0), 15.0).to(tl.int32)
    q = tl.where(is_real[:, None], q, 0)

    # lane = 16 j + 8 b + c and row = 16 tile + 8 h + 2 a + l: word 16 c + 4 a + j of the tile, nibble 4 l + 2 b + h.
    shift = 16 * (row % 2)[None, :] + 8 * (lane // 8 % 2)[:, None] + 4 * (row // 8 % 2)[None, :]
    words = tl.reshape(q << shift, [4, 2, 8, GROUP // 16, 2, 4, 2])
    words = tl.sum(tl.sum(tl.sum(words, 6), 4), 1)  # of disjoint bits: [j, c, tile, a]
    words = tl.reshape(tl.permute(words, [2, 1, 3, 0]), [GROUP // 16, 128])
    tile = (group * (GROUP // 16) + tl.arange(0, GROUP // 16)).to(tl.int64)
    tl.store(values + tile[:, None] * (2 * wide) + column * 128 + tl.arange(0, 128)[None, :], words)

    if IS_ONE_GROUP:
        within = lane % 32
        place = lane - within + within % 8 // 2 * 8 + within // 8 * 2 + within % 2
    else:
        place = lane % 8 * 8 + lane // 8
    base = group.to(tl.int64) * wide + column * 64
    # The cast is exact: `step` is a number of that dtype.
    tl.store(scales + base + place, tl.where(is_real, step, 0.0).to(scales.dtype.element_ty))
    nibble = lane // 16 + 4 * (lane // 8 % 2)
    nibbles = tl.where(is_real, zero, 0.0).to(tl.int32) << (4 * nibble)
    tl.store(zeros + base // 8 + tl.arange(0, 8), tl.sum(tl.reshape(nibbles, [8, 8]), 0))


@triton.jit
def channel_kernel(
    weight,  # [num_outputs, inputs], rows `stride` apart
    values,  # int8, or uint8 for the bits of e4m3 [wide, inputs]
    scales,  # float32 [wide]
    num_outputs,
    wide,
    inputs,
    stride,
    LARGEST: tl.constexpr,
    IS_INTEGER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantize ROWS outputs in each program, each with one scale; outputs behind the last get zeros."""
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_real, is_there = (output < num_outputs)[:, None], (output < wide)[:, None]
    from_row = weight + output.to(tl.int64)[:, None] * stride
    to_row = values + output.to(tl.int64)[:, None] * inputs
    largest = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, inputs, BLOCK):
        row = start + tl.arange(0, BLOCK)[None, :]
        w = _widen(tl.load(from_row + row, mask=is_real & (row < inputs), other=0.0))
        largest = tl.maximum(largest, tl.abs(w))
    # The smallest normal float32: a row of zeros is divided by something.
    scale = tl.div_rn(tl.max(largest, 1), tl.full([ROWS], LARGEST, tl.float32))
    scale = tl.maximum(scale, 1.1754943508222875e-38)
    tl.store(scales + output, tl.where(output < num_outputs, scale, 0.0), mask=output < wide)
    for start in range(0, inputs, BLOCK):  # read again, out of the cache
        row = start + tl.arange(0, BLOCK)[None, :]
        w = _widen(tl.load(from_row + row, mask=is_real & (row < inputs), other=0.0))
        ratio = tl.div_rn(w, tl.broadcast_to(scale[:, None], [ROWS, BLOCK]))
        ratio = tl.minimum(tl.maximum(ratio, -LARGEST), LARGEST)
        code = _rint(ratio).to(tl.int8) if IS_INTEGER else _fp8_bits(ratio)
        tl.store(to_row + row, code, mask=is_there & (row < inputs))


def quantize_int4(weight: torch.Tensor, pack: MarlinPack) -> None:
    """Quantize to 4 bits with a zero point per group, round to nearest, into Marlin's layout.

    scale = (high - low) / 15 of a group's range, widened to have zero in it, and rounded to the scales' dtype; zero
    point = round(-low / scale); value = round(weight / scale) + zero point, cut to 0..15.

    Args:
        weight: [pack.num_outputs, pack.num_inputs], bfloat16, float16 or float32; finite; rows may lie apart.
        pack: Buffers of `layout.empty_pack`, on the weight's device. Overwritten, padding too; not its bias.

    Raises:
        ValueError: Shape, dtype, strides or device of the weight are others.
    """
    _require_weight(weight, (pack.num_outputs, pack.num_inputs), pack.values.device)
    num_groups = pack.scales.shape[0]
    int4_kernel[(pack.wide // TILE_OUTPUTS, num_groups)](
        weight, pack.values, pack.scales, pack.zeros, pack.num_outputs, pack.wide, weight.stride(0),
        GROUP=pack.group_size, IS_ONE_GROUP=num_groups == 1, num_warps=INT4_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def quantize_channels(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """Quantize with one scale per output, round to nearest: scale = largest magnitude / 127 or 448.

    Args:
        weight: [num_outputs, inputs], bfloat16, float16 or float32; finite; rows may lie apart.
        values: int8 or float8_e4m3fn [wide, inputs], contiguous; wide: num_outputs or more. Overwritten.
        scales: float32 [wide, 1], contiguous. Overwritten; 0 behind the weight's outputs.

    Raises:
        ValueError: Shape, dtype, strides or device of the weight are others.
    """
    wide, inputs = values.shape
    if weight.shape[0] > wide:
        raise ValueError(f"values have room for {wide} outputs, the weight has {weight.shape[0]}: make them larger")
    _require_weight(weight, (weight.shape[0], inputs), values.device)
    is_integer = values.dtype == torch.int8
    rows, block = CHANNEL_TILE if weight.is_cuda else INTERPRETED_CHANNEL_TILE
    channel_kernel[(triton.cdiv(wide, rows),)](
        weight, values if is_integer else values.view(torch.uint8), scales,
        weight.shape[0], wide, inputs, weight.stride(0),
        LARGEST=LARGEST_INT8 if is_integer else LARGEST_FP8, IS_INTEGER=is_integer, ROWS=rows, BLOCK=block,
        num_warps=CHANNEL_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def _require_weight(weight: torch.Tensor, shape: tuple[int, int], device: torch.device) -> None:
    if weight.shape != shape or weight.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"the buffers are for a bfloat16, float16 or float32 weight {list(shape)}, got {weight.dtype} "
            f"{list(weight.shape)}: make others"
        )
    if weight.stride(1) != 1:
        raise ValueError(f"the kernel reads rows of stride 1, got strides {weight.stride()}: call contiguous() first")
    if weight.device != device:
        raise ValueError(f"the weight is on {weight.device}, its buffers on {device}: move one of them")
