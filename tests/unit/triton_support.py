"""What the tests of the Triton kernels share: weights that are hard to quantize, and what must come of them.

Beside a GPU the kernels run there; elsewhere in Triton's interpreter, to be asked for before Triton is loaded.
"""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="needs Triton: bash scripts/install.sh --triton")
if DEVICE == "cuda":
    pytest.importorskip("vllm._custom_ops", reason="needs a CUDA build of vLLM, whose kernels multiply")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KINDS = ("normal", "ties", "odd")


def weight_of(num_outputs: int, num_inputs: int, dtype: torch.dtype, kind: str = "normal", seed: int = 0):
    """A weight on DEVICE; one of ties is a slice of a wider one."""
    generator = torch.Generator().manual_seed(seed + 31 * num_outputs + num_inputs)
    weight = torch.randn(num_outputs, num_inputs, generator=generator) * 0.02
    if kind == "ties":  # on a lattice: many quotients lie in the middle of two integers
        weight = torch.randint(-15, 16, weight.shape, generator=generator) / 64
    if kind == "odd":
        _make_odd(weight)
    weight = weight.to(dtype).to(DEVICE)
    if kind != "ties":
        return weight
    return torch.full((num_outputs, num_inputs + 24), 7.0, dtype=dtype, device=DEVICE)[:, :num_inputs].copy_(weight)


def _make_odd(weight: torch.Tensor) -> None:
    rows = [
        torch.zeros_like(weight[0]),
        weight[0].abs() + 0.1,  # one-sided groups
        -weight[0].abs() - 0.1,
        weight[0] * 1e-38,  # subnormal
        torch.full_like(weight[0], 5.0),
        torch.full_like(weight[0], -0.0),
        torch.where(torch.arange(weight.shape[1]) == 1, 300.0, weight[0]),  # an outlier
        weight[0] * 1e-6,  # subnormal in float16
    ]
    for index in range(weight.shape[0]):
        if index < len(rows) or weight.shape[0] - index <= len(rows):
            weight[index] = rows[index % len(rows)]


def int4_reference(weight: torch.Tensor, group_size: int, scale_dtype: torch.dtype):
    """What int4 chooses, in torch: int32 values [outputs, inputs]; scales, int32 zero points [outputs, groups]."""
    groups = weight.cpu().float().unflatten(1, (-1, group_size))
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = ((high - low) / 15).clamp_min(2**-14 if scale_dtype == torch.float16 else 1e-30).to(scale_dtype)
    zeros = (-low / scales.float()).round().clamp(0, 15)
    values = ((groups / scales.float().unsqueeze(-1)).round() + zeros.unsqueeze(-1)).clamp(0, 15)
    return values.int().flatten(1), scales, zeros.int()


def assert_same_bits(tensor: torch.Tensor, expected: torch.Tensor) -> None:
    """The same shape, dtype and bytes."""
    tensor, expected = tensor.cpu().contiguous(), expected.cpu().contiguous()
    assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8))


def fill_with_garbage(*tensors: torch.Tensor) -> None:
    """What memory holds that an engine discarded in its sleep."""
    for tensor in tensors:
        tensor.view(torch.uint8).fill_(0xA5)
