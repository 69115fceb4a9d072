"""One column shows every row: of packed layers exactly, whatever the kernel, and of tensors on their way."""

import pytest
import torch

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter import columns
from efficient_rollout.drafter.cpu.layers import Int4NativeLinear, Int8NativeLinear
from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.scheme import Scheme
from efficient_rollout.drafter.schemes import FLOAT_DTYPES, make_scheme

KERNELS = ["int8", "int4", "native int8", "native int4"]


@pytest.fixture(scope="module", autouse=True)
def _cpu_kernels():
    platforms = pytest.importorskip("vllm.platforms", reason="int8 needs vLLM's CPU kernels")
    platforms.current_platform.import_kernels()


def scheme_of(kernel: str) -> Scheme:
    if not kernel.startswith("native"):
        return make_scheme(DrafterSettings(scheme=kernel, group_size=32), "cpu")
    if native_missing():
        pytest.skip("no native kernels here")
    layer = (
        Int8NativeLinear
        if kernel.endswith("int8")
        else lambda weight, bias: Int4NativeLinear(weight, bias, group_size=32)
    )
    return Scheme(name=kernel, kernel=kernel, layer=layer, missing=lambda: None, tile=(16, 32))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(100, 72), (64, 256)])
def test_a_packed_layer_has_the_rows_that_were_quantized_apart_and_not_another_s(kernel, dtype, shape):
    packed = PackedWeights(scheme_of(kernel), quantize_output_head=True)
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1)]
    bias = torch.randn(shape[0]).to(dtype)
    due = [turn for turn in range(3 * columns.PERIOD) if columns.is_due("a", turn)]
    for packed.turn in [*due, due[0] + 1]:
        packed.refresh("a", weights[0], bias)
        assert packed.take_difference() is None
        packed.refresh("a", weights[0], bias)
        packed.layers["a"].requantize(weights[1], bias)
        assert (packed.take_difference() is not None) == (packed.turn in due)


def test_a_layer_that_was_not_quantized_in_a_sync_is_named():
    packed = PackedWeights(scheme_of("int4"), quantize_output_head=True)
    for packed.turn in (None, 0):
        packed.refresh("a", torch.randn(64, 64), None)
        packed.refresh("b", torch.randn(64, 64), None)
        packed.take_difference()
    packed.refresh("a", torch.randn(64, 64), None)
    assert packed.take_difference() == "1 of its 2 layers are not the policy's, quantized: b"


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, torch.int64], ids=str)
def test_a_checksum_is_of_every_row_and_of_nothing_but_the_values(dtype):
    tensor = (100 * torch.randn(40, 30)).to(dtype)
    original = int(columns.checksum("a", tensor))
    assert int(columns.checksum("a", tensor.t().contiguous().t())) == original
    for row in range(40):
        changed = tensor.clone()
        changed[row] = -changed[row] - 1
        assert int(columns.checksum("a", changed)) != original
    assert int(columns.checksum("a", tensor.flip(0))) != original
    assert int(columns.checksum("a", tensor[0])) != int(columns.checksum("a", tensor[0].flip(0)))
    columns.checksum("a", tensor[0, 0])


@pytest.mark.parametrize("count", [1, 7, 16, 576])
def test_every_place_comes_and_every_name_is_due_once_in_a_period(count):
    assert {columns.place("a", count, turn) for turn in range(count)} == set(range(count))
    for name in ("a", "model.layers.0.self_attn.qkv_proj"):
        assert sum(columns.is_due(name, turn) for turn in range(3, 3 + columns.PERIOD)) == 1


def test_what_is_no_number_equals_nothing_and_what_is_nearly_zero_equals_zero():
    held = torch.tensor([torch.nan, 1.0, 1e-40, 2.0])
    assert int(columns.num_differing(held, torch.tensor([0.0, 1.0, 0.0, 3.0]))) == 2
