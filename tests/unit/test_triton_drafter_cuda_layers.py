"""The layers of a GPU multiply by what their kernels wrote, and stay where they are when they are quantized again."""

import dataclasses
import importlib.util

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
    triton,
    weight_of,
)

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter import columns
from efficient_rollout.drafter.cuda import layout, products
from efficient_rollout.drafter.cuda.layers import ChannelLinear, MarlinInt4Linear
from efficient_rollout.drafter.cuda.quantize import quantize_int4
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import cuda_schemes

BYTE_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
NAMES = ("int4", *BYTE_DTYPES)
SCHEMES = {name: scheme for name, scheme in cuda_schemes(DrafterSettings(group_size=128)).items() if name in NAMES}
# Rounding activations to 8 bits, of a row's largest value, or of their own size.
RELATIVE_ERROR = {"int4": 0.008, "int8": 0.025, "fp8": 0.06}


def bias_of(num_outputs: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return weight_of(1, num_outputs, dtype, seed=seed)[0]


def rows_of(num_rows: int, num_inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return 50 * weight_of(num_rows, num_inputs, dtype, seed=5)


def buffers_of(layer) -> dict[str, torch.Tensor]:
    """Every tensor that a layer holds, by name."""
    found = {}
    for name, value in vars(layer).items():
        if dataclasses.is_dataclass(value):
            parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            found |= {f"{name}.{key}": part for key, part in parts.items() if isinstance(part, torch.Tensor)}
        elif isinstance(value, torch.Tensor):
            found[name] = value
        elif hasattr(value, "requantize"):
            found |= {f"{name}.{key}": tensor for key, tensor in buffers_of(value).items()}
    return found


@pytest.mark.parametrize("inputs", [128, 256])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pack_is_read_back_exactly(dtype, kind, inputs):
    weight, scale_dtype = weight_of(100, inputs, dtype, kind), products.multiplied_in(dtype)
    pack = layout.empty_pack((100, inputs), 128, scale_dtype, DEVICE)
    quantize_int4(weight, pack)
    values, scales, zeros = int4_reference(weight, 128, scale_dtype)
    spread = [each.float().repeat_interleave(128, 1) for each in (scales, zeros)]
    assert_same_bits(layout.dequantize(pack), (values.float() - spread[1]) * spread[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int4_multiplies_by_what_its_kernel_does(dtype):
    weight = weight_of(100, 256, dtype)
    compute_dtype = products.multiplied_in(dtype)
    values, scales, zeros = int4_reference(weight, 64, compute_dtype)
    spread = [each.float().repeat_interleave(64, 1) for each in (scales, zeros)]
    expected = ((values.float() - spread[1]) * spread[0]).to(compute_dtype).float()
    assert_same_bits(MarlinInt4Linear(weight, group_size=64).dequantize(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values_dtype", BYTE_DTYPES.values(), ids=BYTE_DTYPES)
def test_eight_bits_multiply_by_what_their_kernel_chose(values_dtype, dtype):
    weight = weight_of(100, 48, dtype)
    values, scales = channel_reference(weight, values_dtype)
    assert_same_bits(ChannelLinear(weight, values_dtype=values_dtype).dequantize(), values.float() * scales)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_product_is_close_to_the_dequantized_product(name, num_rows, with_bias, dtype):
    bias = bias_of(100, dtype) if with_bias else None
    layer = SCHEMES[name].pack(weight_of(100, 256, dtype), bias)
    rows = rows_of(num_rows, 256, dtype)
    product = layer(rows.unsqueeze(1))
    assert product.shape == (num_rows, 1, 100)
    assert product.dtype == dtype
    assert product.is_contiguous()
    expected = torch.nn.functional.linear(rows.float(), layer.dequantize(), None if bias is None else bias.float())
    relative_error = (product.squeeze(1).float() - expected).norm() / expected.norm()
    assert relative_error < RELATIVE_ERROR[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_with_exact_activations_is_right_to_the_kernel_s_rounding(name, dtype):
    generator = torch.Generator().manual_seed(2)
    # Integers of four bits, and in each row the number that makes its scale one: every kernel holds them exactly.
    rows = torch.randint(-15, 16, (5, 256), generator=generator).to(dtype).to(DEVICE)
    rows[:, 7] = {"int4": 15, "int8": 127, "fp8": 448}[name]
    bias = bias_of(100, dtype)
    layer = SCHEMES[name].pack(weight_of(100, 256, dtype), bias)
    exact = torch.nn.functional.linear(rows.double(), layer.dequantize().double())
    bias = bias.to(products.multiplied_in(dtype)).double()
    # The product and, behind it, the sum with the bias are rounded; and float32 additions round.
    bound = torch.finfo(products.multiplied_in(dtype)).eps * (exact.abs() + (exact + bias).abs()) / 2
    bound += 1e-6 * torch.nn.functional.linear(rows.double().abs(), layer.dequantize().double().abs())
    if DEVICE == "cuda" and name == "fp8":  # tensor cores keep some 14 bits of a sum of fp8 products
        bound += 2**-13 * torch.nn.functional.linear(rows.double().abs(), layer.dequantize().double().abs())
    assert ((layer(rows).double() - exact - bias).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [64, 100])
def test_products_are_their_references(dtype, outputs):
    rows, weight, bias = rows_of(5, 256, dtype), weight_of(outputs, 256, dtype), bias_of(outputs, dtype)
    int4 = MarlinInt4Linear(weight, bias, group_size=64)
    pairs = [(int4(rows), products.multiply_int4_reference(rows, int4._buffers))]
    for values_dtype in BYTE_DTYPES.values():
        layer = ChannelLinear(weight, bias, values_dtype=values_dtype)
        reference = products.multiply_channels_reference(rows, layer._values, layer._scales, layer._wide_bias)
        pairs.append((layer(rows), reference[:, :outputs]))
    for product, reference in pairs:
        tolerance = 0 if DEVICE == "cpu" else 0.02
        torch.testing.assert_close(product, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(name):
    layer, rows = SCHEMES[name].pack(weight_of(64, 256, torch.bfloat16), None), rows_of(5, 256, torch.bfloat16)
    rows[1] *= 1000
    torch.testing.assert_close(layer(rows)[2], layer(rows[2:3])[0], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_zeros_gives_the_bias(name):
    bias = bias_of(100, torch.bfloat16)
    layer = SCHEMES[name].pack(weight_of(100, 256, torch.bfloat16), bias)
    assert torch.equal(layer(torch.zeros(2, 256, dtype=torch.bfloat16, device=DEVICE)), bias.expand(2, -1))


@pytest.mark.parametrize("shape", [(64, 256), (100, 256), (100, 200)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_requantize_writes_everything_where_it_was(name, with_bias, shape):
    first, second = (weight_of(*shape, torch.bfloat16, seed=seed) for seed in (0, 1))
    biases = [bias_of(shape[0], torch.bfloat16, seed) if with_bias else None for seed in (2, 3)]
    layer, expected = SCHEMES[name].pack(first, biases[0]), SCHEMES[name].pack(second, biases[1])
    buffers = buffers_of(layer)
    addresses = {key: tensor.data_ptr() for key, tensor in buffers.items()}
    assert len(addresses) == {"int4": 4, "int8": 2, "fp8": 2}[name] + 2 * with_bias - (with_bias and shape[1] == 200)
    fill_with_garbage(*buffers.values())
    layer.requantize(second, biases[1])
    assert {key: tensor.data_ptr() for key, tensor in buffers_of(layer).items()} == addresses
    for key, tensor in buffers_of(expected).items():
        assert_same_bits(buffers[key], tensor)


def test_requantize_frees_marlin_s_locks():
    layer = MarlinInt4Linear(weight_of(64, 128, torch.bfloat16), group_size=64)
    layer._locks = torch.full((8,), -1, dtype=torch.int32, device=DEVICE)  # on a CPU there are none
    layer.requantize(weight_of(64, 128, torch.bfloat16))
    assert not layer._locks.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_bias_neither_comes_nor_goes(name):
    weight, bias = weight_of(64, 128, torch.bfloat16), bias_of(64, torch.bfloat16)
    with pytest.raises(ValueError, match="without a bias"):
        SCHEMES[name].pack(weight, None).requantize(weight, bias)
    with pytest.raises(ValueError, match="with a bias"):
        SCHEMES[name].pack(weight, bias).requantize(weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "dtype"), [((64, 256), torch.bfloat16), ((64, 128), torch.float16)], ids=str)
def test_requantize_refuses_another_weight(name, shape, dtype):
    with pytest.raises(ValueError, match="requantize expects"):
        SCHEMES[name].pack(weight_of(64, 128, torch.bfloat16), None).requantize(weight_of(*shape, dtype))


def test_shapes_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match="192"):
        MarlinInt4Linear(weight_of(64, 192, torch.bfloat16), group_size=64)
    with pytest.raises(ValueError, match="40"):
        ChannelLinear(weight_of(64, 40, torch.bfloat16), values_dtype=torch.int8)


@pytest.mark.parametrize(("group_size", "bits"), [(128, 4.15625), (64, 4.3125), (32, 4.625)])
def test_bits_of_an_int4_weight(group_size, bits):
    pack = layout.empty_pack((4096, 3584), group_size, torch.bfloat16, "meta")
    assert 8 * pack.num_bytes / (4096 * 3584) == bits


def test_num_bytes_counts_every_tensor():
    weight, bias = weight_of(100, 256, torch.bfloat16), bias_of(100, torch.bfloat16)
    for scheme in SCHEMES.values():
        for layer in (scheme.pack(weight, bias), scheme.pack(weight[:, :200], None)):
            assert layer.num_bytes == sum(tensor.nbytes for tensor in buffers_of(layer).values())


def test_weights_that_padding_would_more_than_double_are_left_out():
    assert SCHEMES["int4"].takes(1, 65, torch.bfloat16)
    assert not SCHEMES["int4"].takes(64, 63, torch.bfloat16)
    assert not SCHEMES["int8"].takes(64, 7, torch.bfloat16)
    assert not SCHEMES["fp8"].takes(64, 64, torch.float64)


def test_a_bias_is_where_vllm_puts_it():
    marlin_utils = pytest.importorskip(
        "vllm.model_executor.layers.quantization.utils.marlin_utils", reason="needs vLLM"
    )
    pack = layout.empty_pack((100, 128), 128, torch.bfloat16, DEVICE, has_bias=True)
    bias = bias_of(100, torch.bfloat16)
    layout.write_bias(pack, bias)
    assert_same_bits(pack.bias, marlin_utils.marlin_permute_bias(torch.nn.functional.pad(bias, (0, 28))))
    assert_same_bits(layout.read_bias(pack), bias)


class Recorder:
    """Stands for an operator, and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, *args):
        self.calls.append(args)
        return torch.zeros(5, 128, dtype=torch.bfloat16)


@pytest.fixture
def operators(monkeypatch):
    """Recorders for the operators of vLLM's CUDA build, which a CPU has not."""
    names = ("marlin_gemm", "dynamic_scaled_int8_quant", "dynamic_per_token_scaled_fp8_quant", "cutlass_scaled_mm")
    recorders = {name: Recorder() for name in names}
    for name, recorder in recorders.items():
        monkeypatch.setattr(torch.ops._C, name, recorder, raising=False)
    return recorders


def assert_same_calls(calls: list[tuple]) -> None:
    """Two calls with the same arguments; of new tensors, only dtype, shape and strides count."""
    ours, theirs = calls
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        if isinstance(our, torch.Tensor):
            assert (our.dtype, our.shape, our.stride()) == (their.dtype, their.shape, their.stride())
        else:
            assert (our, type(our)) == (their, type(their))


def test_marlin_is_called_as_vllm_calls_it(operators):
    ops = pytest.importorskip("vllm._custom_ops", reason="needs vLLM")
    utils = pytest.importorskip("vllm.model_executor.layers.quantization.utils.marlin_utils", reason="needs vLLM")
    from vllm.scalar_type import scalar_types

    rows = rows_of(5, 256, torch.bfloat16).cpu()
    layer = MarlinInt4Linear(weight_of(100, 256, torch.bfloat16), bias_of(100, torch.bfloat16), group_size=64)
    pack = layer._buffers
    products._marlin_gemm(rows, pack, layer._locks)
    ops.marlin_gemm(
        rows, None, pack.values, pack.bias, pack.scales, None, None, pack.zeros, layer._locks, scalar_types.uint4,
        5, 128, 256, use_fp32_reduce=utils.USE_FP32_REDUCE_DEFAULT,
    )  # fmt: skip
    assert_same_calls(operators["marlin_gemm"].calls)
    assert products._LOCKS_PER_MULTIPROCESSOR == utils.MARLIN_MAX_BLOCKS_PER_SM


@pytest.mark.parametrize("name", BYTE_DTYPES)
def test_cutlass_is_called_as_vllm_calls_it(operators, name):
    ops = pytest.importorskip("vllm._custom_ops", reason="needs vLLM")
    rows = rows_of(5, 256, torch.bfloat16).cpu()
    weight, bias = weight_of(128, 256, torch.bfloat16), bias_of(128, torch.bfloat16)
    packed = ChannelLinear(weight, bias, values_dtype=BYTE_DTYPES[name])
    quantizer = "dynamic_scaled_int8_quant" if name == "int8" else "dynamic_per_token_scaled_fp8_quant"
    products._scaled_mm(rows, packed._values, packed._scales, packed._wide_bias)
    if name == "int8":
        row_values, row_scales, _ = ops.scaled_int8_quant(rows)
    else:
        row_values, row_scales = ops.scaled_fp8_quant(rows, use_per_token_if_dynamic=True)
    ops.cutlass_scaled_mm(row_values, packed._values.t(), row_scales, packed._scales, rows.dtype, packed._wide_bias)
    assert_same_calls(operators[quantizer].calls)
    assert_same_calls(operators["cutlass_scaled_mm"].calls)


@pytest.mark.parametrize(
    ("capability", "runnable"),
    [
        ((7, 0), []),
        ((7, 5), ["int8"]),
        ((8, 0), ["int4", "int8"]),
        ((8, 9), ["int4", "int8", "fp8"]),
        ((9, 0), ["int4", "int8", "fp8"]),
        ((10, 0), ["int4", "fp8"]),
        ((12, 0), ["int4", "fp8"]),
    ],
    ids=str,
)
def test_a_gpu_runs_what_it_has_instructions_for(monkeypatch, operators, capability, runnable):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    missing = {name: scheme.missing() for name, scheme in SCHEMES.items()}
    assert [name for name, words in missing.items() if words is None] == runnable
    assert all(f"{capability[0]}.{capability[1]}" in words for words in missing.values() if words)


def test_what_is_missing_is_said(monkeypatch):
    if DEVICE == "cpu":
        assert [scheme.missing() for scheme in SCHEMES.values()] == [None] * 3  # in the interpreter
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert all("NVIDIA GPU" in scheme.missing() for scheme in SCHEMES.values())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if not hasattr(torch.ops._C, "marlin_gemm"):
        assert "vLLM's marlin_gemm is not loaded" in SCHEMES["int4"].missing()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert all("Triton" in scheme.missing() for scheme in SCHEMES.values())
    assert cuda_schemes(DrafterSettings())["unquantized"].missing() is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_has_the_rows_that_were_quantized_apart_and_not_another_s(name, dtype):
    packed = PackedWeights(SCHEMES[name], quantize_output_head=True)
    shape, bias = (200, 384), bias_of(200, dtype)
    due = [turn for turn in range(2 * columns.PERIOD) if columns.is_due("a", turn)]
    for packed.turn in due:
        packed.refresh("a", weight_of(*shape, dtype), bias)
        assert packed.take_difference() is None
        packed.refresh("a", weight_of(*shape, dtype), bias)
        packed.layers["a"].requantize(weight_of(*shape, dtype, seed=1), bias)
        assert packed.take_difference() is not None
