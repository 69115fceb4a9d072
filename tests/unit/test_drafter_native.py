"""The C kernels: the weights of the reference quantizer, bit for bit, and rows that do not depend on each other."""

import shutil

import pytest
import torch

from efficient_rollout.drafter.float32_native import Float32NativeLinear, takes
from efficient_rollout.drafter.int4 import quantize_int4
from efficient_rollout.drafter.int4_native import Int4NativeLinear
from efficient_rollout.drafter.native import library
from efficient_rollout.errors import SchemeUnavailableError

if (reason := library.native_missing()) is not None:
    pytest.skip(f"native kernels: {reason}", allow_module_level=True)

NUM_ROWS = [1, 2, 3, 4, 5, 6, 7, 13, 50, 97]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_packs_the_reference_quantizers_choice_bit_for_bit(group_size, dtype):
    weight = (draw(0, 48, 384) * torch.logspace(-9, 3, 48).unsqueeze(1)).to(dtype)
    weight[5] = 0.25
    weight[6] = 0.0
    values, scales, offsets = quantize_int4(weight, group_size, torch.bfloat16)
    expected = (values.float() - 8) * scales.float().repeat_interleave(group_size, 1)
    expected += offsets.float().repeat_interleave(group_size, 1)
    assert torch.equal(Int4NativeLinear(weight, group_size=group_size).dequantize(), expected)


def test_int4_of_a_broken_weight_is_not_a_number():
    weight = draw(0, 16, 64)
    weight[3, 40] = torch.nan
    product = Int4NativeLinear(weight, group_size=32)(draw(1, 2, 64))
    assert product.isnan().any(dim=0).tolist() == [i == 3 for i in range(16)]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_float32_is_the_product(num_rows, with_bias):
    weight, x = draw(0, 208, 320), draw(1, num_rows, 320)
    bias = draw(2, 208) if with_bias else None
    product = Float32NativeLinear(weight, bias)(x)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    # 320 terms, summed one after the other: the error of float32 grows like the root of their number.
    torch.testing.assert_close(product.double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("make", [Float32NativeLinear, lambda weight: Int4NativeLinear(weight, group_size=64)])
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_a_row_is_the_same_bit_for_bit_among_any_number_of_others(make, num_rows):
    layer, x = make(draw(0, 208, 320)), draw(1, 97, 320)
    alone = torch.cat([layer(row.unsqueeze(0)) for row in x])
    assert torch.equal(layer(x[:num_rows]), alone[:num_rows])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(num_threads):
    weight, x = draw(0, 208, 320), draw(1, 9, 320)
    layers = Float32NativeLinear(weight), Int4NativeLinear(weight, group_size=64)
    expected = [layer(x) for layer in layers]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert all(torch.equal(layer(x), y) for layer, y in zip(layers, expected, strict=True))
        fresh = Float32NativeLinear(weight), Int4NativeLinear(weight, group_size=64)
        assert all(torch.equal(a.dequantize(), b.dequantize()) for a, b in zip(fresh, layers, strict=True))
    finally:
        torch.set_num_threads(before)


def test_requantizing_writes_where_the_old_weights_were():
    weight, other = draw(0, 64, 128), draw(1, 64, 128)
    for layer, buffer in (
        (Float32NativeLinear(weight), "_panels"),
        (Int4NativeLinear(weight, group_size=64), "_nibbles"),
    ):
        address = getattr(layer, buffer).data_ptr()
        before = layer.dequantize()
        layer.requantize(other)
        assert getattr(layer, buffer).data_ptr() == address
        assert not torch.equal(layer.dequantize(), before)
    assert torch.equal(Float32NativeLinear(other).dequantize(), other)


def test_only_float32_matrices_of_whole_panels_are_taken():
    assert takes(torch.zeros(32, 5))
    assert not takes(torch.zeros(31, 5))
    assert not takes(torch.zeros(32, 5, dtype=torch.bfloat16))
    assert not takes(torch.zeros(32, 5, 2))


@pytest.fixture
def _fresh_library(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


@pytest.mark.usefixtures("_fresh_library")
def test_the_library_is_compiled_once_and_found_again(monkeypatch, tmp_path):
    library.load_library()
    (file,) = (tmp_path / "efficient_rollout" / "kernels").iterdir()
    library.load_library.cache_clear()
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    library.load_library()
    assert file.suffix == ".so"


@pytest.mark.usefixtures("_fresh_library")
def test_a_failing_or_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_FLAGS", ("--no-such-flag",))
    with pytest.raises(SchemeUnavailableError, match="no-such-flag"):
        library.load_library()
    assert list((tmp_path / "efficient_rollout" / "kernels").iterdir()) == []
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SchemeUnavailableError, match="none of gcc, clang is on the PATH"):
        library.load_library()


@pytest.mark.usefixtures("_fresh_library")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "efficient_rollout").write_text("a file where the folder should be")
    assert "set XDG_CACHE_HOME" in (library.native_missing() or "")
