"""The quantizing kernels write, bit for bit, what plain torch chooses, where vLLM's own packing puts it."""

import pytest
import torch
from reference_quantizers import channel_reference
from triton_support import (
    DEVICE,
    DTYPES,
    KINDS,
    assert_same_bits,
    fill_with_garbage,
    int4_reference,
    weight_of,
)

from efficient_rollout.drafter.cuda.layout import empty_pack, padded_outputs
from efficient_rollout.drafter.cuda.quantize import quantize_channels, quantize_int4

SHAPES = [(64, 128), (100, 256)]
MORE_SHAPES = [(64, 256), (192, 384), (80, 128), (1, 128), (130, 640)]
# Of layers of Qwen2.5-7B and 14B, Llama-3.1-8B and Qwen3-8B. Outputs do not interact: a tile of them stands for all.
REAL_INPUTS = [3584, 18944, 5120, 13824, 4096, 14336, 12288]
BYTE_DTYPES = pytest.mark.parametrize("values_dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])


@pytest.fixture(scope="module")
def vllm_packing():
    return pytest.importorskip("vllm.model_executor.layers.quantization.utils.marlin_utils_test", reason="needs vLLM")


def assert_packed_as_vllm_packs(vllm_packing, weight: torch.Tensor, group_size: int) -> None:
    scale_dtype = torch.float16 if weight.dtype == torch.float16 else torch.bfloat16
    pack = empty_pack(tuple(weight.shape), group_size, scale_dtype, DEVICE)
    fill_with_garbage(pack.values, pack.scales, pack.zeros)
    quantize_int4(weight, pack)

    values, scales, zeros = int4_reference(weight, group_size, scale_dtype)
    inputs, wide = weight.shape[1], padded_outputs(weight.shape[0])
    values, scales, zeros = (
        torch.nn.functional.pad(each.t(), (0, wide - weight.shape[0])).contiguous() for each in (values, scales, zeros)
    )
    permutation = vllm_packing.get_weight_perm(4)
    assert_same_bits(pack.values, vllm_packing.marlin_weights(values, inputs, wide, 4, permutation))
    assert_same_bits(pack.scales, vllm_packing.marlin_permute_scales(scales, inputs, wide, group_size))
    assert_same_bits(pack.zeros, vllm_packing.marlin_zero_points(zeros, inputs // group_size, wide, 4))


@pytest.mark.parametrize("group_size", [128, 64, 32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [*SHAPES, *(pytest.param(shape, marks=pytest.mark.slow) for shape in MORE_SHAPES)], ids=str
)
def test_int4_is_what_vllm_packs(vllm_packing, shape, dtype, kind, group_size):
    assert_packed_as_vllm_packs(vllm_packing, weight_of(*shape, dtype, kind), group_size)


@pytest.mark.parametrize(
    "inputs", [REAL_INPUTS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in REAL_INPUTS[1:])]
)
def test_int4_of_a_real_layer_is_what_vllm_packs(vllm_packing, inputs):
    assert_packed_as_vllm_packs(vllm_packing, weight_of(64, inputs, torch.bfloat16), 128)


@BYTE_DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [*SHAPES, *(pytest.param(shape, marks=pytest.mark.slow) for shape in [*MORE_SHAPES, (80, 3584)])], ids=str
)
def test_a_scale_per_output_is_what_torch_computes(shape, dtype, kind, values_dtype):
    weight, wide = weight_of(*shape, dtype, kind), -(-shape[0] // 16) * 16
    values = torch.empty(wide, shape[1], dtype=values_dtype, device=DEVICE)
    scales = torch.empty(wide, 1, device=DEVICE)
    fill_with_garbage(values, scales)
    quantize_channels(weight, values, scales)
    expected, expected_scales = channel_reference(weight, values_dtype)
    assert_same_bits(values[: shape[0]], expected)
    assert_same_bits(scales[: shape[0]], expected_scales)
    assert not values[shape[0] :].float().any()
    assert not scales[shape[0] :].any()


def test_every_fp8_number_and_the_middle_of_every_two_are_rounded_as_torch_does():
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # 0 to 448
    middles = (numbers[1:] + numbers[:-1]) / 2
    nearly = torch.cat([middles.nextafter(torch.tensor(0.0)), middles.nextafter(torch.tensor(500.0))])
    row = torch.cat([numbers, middles, nearly])
    weight = torch.nn.functional.pad(torch.cat([row, -row]), (0, -2 * row.numel() % 16)).unsqueeze(0).to(DEVICE)
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=DEVICE)
    scales = torch.empty(1, 1, device=DEVICE)
    quantize_channels(weight, values, scales)
    assert scales.item() == 1
    assert_same_bits(values, weight.to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(64, 256), "64, 128"),
        (torch.zeros(64, 128, dtype=torch.float64), "float64"),
        (torch.zeros(128, 64).t(), r"strides \(1, 64\)"),
        (torch.zeros(64, 128, device="meta"), "meta"),
    ],
    ids=["shape", "dtype", "strides", "device"],
)
def test_weights_that_the_buffers_are_not_for_are_refused(weight, words):
    weight = weight if weight.is_meta else weight.to(DEVICE)
    with pytest.raises(ValueError, match=words):
        quantize_int4(weight, empty_pack((64, 128), 64, torch.bfloat16, DEVICE))
    with pytest.raises(ValueError, match=words):
        quantize_channels(
            weight, torch.empty(64, 128, dtype=torch.int8, device=DEVICE), torch.empty(64, 1, device=DEVICE)
        )


def test_buffers_with_too_little_room_are_refused():
    values, scales = torch.empty(48, 128, dtype=torch.int8, device=DEVICE), torch.empty(48, 1, device=DEVICE)
    with pytest.raises(ValueError, match="48 outputs"):
        quantize_channels(torch.zeros(64, 128, device=DEVICE), values, scales)


def test_marlin_has_no_buffers_for_what_it_cannot_multiply():
    with pytest.raises(ValueError, match="192"):
        empty_pack((64, 192), 64, torch.bfloat16, DEVICE)
