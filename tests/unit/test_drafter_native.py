"""The C kernels: the weights of the reference quantizer, bit for bit, and rows that do not depend on each other."""

import shutil

import pytest
import torch
from reference_quantizers import channel_reference, quantize_int4

from efficient_rollout.drafter.cpu.layers import Float32NativeLinear, Int4NativeLinear, Int8NativeLinear, attend, takes
from efficient_rollout.drafter.cpu.native import library
from efficient_rollout.errors import SchemeUnavailableError

if (reason := library.native_missing()) is not None:
    pytest.skip(f"native kernels: {reason}", allow_module_level=True)

LAYERS = [Float32NativeLinear, lambda weight: Int4NativeLinear(weight, group_size=64), Int8NativeLinear]
NUM_ROWS = [1, 2, 3, 4, 5, 6, 7, 9, 13, 50, 97]
HAS_VNNI = library.has_vnni()


@pytest.fixture(autouse=True, params=[False, True], ids=["AVX2", "VNNI"])
def instructions(request, monkeypatch):
    """Every test with each build of the kernels."""
    if request.param and not HAS_VNNI:
        pytest.skip("the CPU has no AVX512 VNNI")
    use(monkeypatch, has_vnni=request.param)
    yield
    library.load_library.cache_clear()


def use(monkeypatch, *, has_vnni):
    monkeypatch.setattr(library, "has_vnni", lambda: has_vnni)
    library.load_library.cache_clear()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven_weight(dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different sizes, one constant and one of zeros."""
    weight = (draw(0, 48, 384) * torch.logspace(-9, 3, 48).unsqueeze(1)).to(dtype)
    weight[5] = 0.25
    weight[6] = 0.0
    return weight


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int4_packs_the_reference_quantizers_choice_bit_for_bit(group_size, dtype):
    weight = uneven_weight(dtype)
    values, scales, offsets = quantize_int4(weight, group_size, torch.bfloat16)
    expected = (values.float() - 8) * scales.float().repeat_interleave(group_size, 1)
    expected += offsets.float().repeat_interleave(group_size, 1)
    assert torch.equal(Int4NativeLinear(weight, group_size=group_size).dequantize(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_packs_the_reference_quantizers_choice_bit_for_bit(dtype):
    weight = uneven_weight(dtype)
    values, scales = channel_reference(weight, torch.int8)
    assert torch.equal(Int8NativeLinear(weight).dequantize(), values.float() * scales)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_is_the_product_of_integers(num_rows, with_bias):
    # Integers from -127 to 127 on both sides, the largest in every row: nothing is rounded until the scales. The
    # extremes stand side by side, where sums in 16 bits would overflow first.
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randint(-127, 128, (rows, 320), generator=generator).float() for rows in (208, num_rows))
    weight[:, :64], x[:, :64] = 127.0, -127.0
    bias = draw(2, 208) if with_bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (Int8NativeLinear(weight, bias)(x).double() - exact).abs().max() <= 2e-7 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", LAYERS[1:])
def test_products_of_sixteen_bits_are_those_of_float32_rounded_once(make, dtype):
    weight, x = draw(0, 48, 192).to(dtype), draw(1, 5, 192).to(dtype)
    assert torch.equal(make(weight)(x), make(weight.float())(x.float()).to(dtype))


@pytest.mark.parametrize("make", [lambda weight: Int4NativeLinear(weight, group_size=32), Int8NativeLinear])
def test_of_a_broken_weight_or_row_is_not_a_number(make):
    weight, x = draw(0, 16, 64), draw(1, 2, 64)
    weight[3, 40] = torch.nan
    assert make(weight)(x).isnan().any(dim=0).tolist() == [i == 3 for i in range(16)]
    x[1, 7] = torch.nan
    assert make(draw(0, 16, 64))(x).isnan().all(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_float32_is_the_product(num_rows, with_bias):
    weight, x = draw(0, 208, 320), draw(1, num_rows, 320)
    bias = draw(2, 208) if with_bias else None
    product = Float32NativeLinear(weight, bias)(x)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    # 320 terms, summed one after the other: the error of float32 grows like the root of their number.
    torch.testing.assert_close(product.double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_a_row_is_the_same_bit_for_bit_among_any_number_of_others(make, num_rows):
    layer, x = make(draw(0, 208, 320)), draw(1, 97, 320)
    alone = torch.cat([layer(row.unsqueeze(0)) for row in x])
    assert torch.equal(layer(x[:num_rows]), alone[:num_rows])


@pytest.mark.skipif(not HAS_VNNI, reason="the CPU has no AVX512 VNNI")
@pytest.mark.parametrize("make", LAYERS[1:])
def test_both_builds_compute_the_same_bits(make, monkeypatch):
    weight, x = draw(0, 208, 320), draw(1, 13, 320)
    products = []
    for has_vnni in (False, True):
        use(monkeypatch, has_vnni=has_vnni)
        products.append(make(weight)(x))
    assert torch.equal(*products)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(num_threads):
    weight, x = draw(0, 208, 320), draw(1, 9, 320)
    layers = [make(weight) for make in LAYERS]
    expected = [layer(x) for layer in layers]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert all(torch.equal(layer(x), y) for layer, y in zip(layers, expected, strict=True))
        fresh = [make(weight) for make in LAYERS]
        assert all(torch.equal(a.dequantize(), b.dequantize()) for a, b in zip(fresh, layers, strict=True))
    finally:
        torch.set_num_threads(before)


def test_requantizing_writes_where_the_old_weights_were():
    weight, other = draw(0, 64, 128), draw(1, 64, 128)
    for layer, buffer in (
        (Float32NativeLinear(weight), "_panels"),
        (Int4NativeLinear(weight, group_size=64), "_values"),
        (Int8NativeLinear(weight), "_values"),
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


def paged(seed: int, lengths: list[int], *, kv_heads: int = 2, head_dim: int = 48, block_size: int = 32):
    """Keys and values of each sequence, the cache that holds them in shuffled blocks, and the block table."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts) + 2, generator=generator).int()
    # What no sequence owns is not a number: reading it would show.
    cache = torch.full((len(order), kv_heads, 2 * block_size, head_dim), torch.nan)
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    sequences, used = [], 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = order[used : used + count]
        used += count
        table[row, :count] = mine
        keys, values = (torch.randn(length, kv_heads, head_dim, generator=generator) for _ in range(2))
        for token in range(length):
            block = cache[int(mine[token // block_size])]
            block[:, :block_size].view(kv_heads, head_dim, block_size)[:, :, token % block_size] = keys[token]
            block[:, block_size + token % block_size] = values[token]
        sequences.append((keys, values))
    return sequences, cache, table


def run_attention(query, cache, table, counts, lengths):
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    output = torch.empty_like(query)
    attend(query, cache, output, starts, torch.tensor(lengths, dtype=torch.int32), table, query.shape[2] ** -0.5)
    return output


@pytest.mark.parametrize("counts", [[1, 1, 1], [5, 5, 5], [1, 3, 17], [2, 60, 100]])
def test_attention_is_causal_attention_to_the_whole_context(counts):
    lengths = [20, 64, 133]
    sequences, cache, table = paged(0, lengths)
    query = draw(1, sum(counts), 6, 48)
    output = run_attention(query, cache, table, counts, lengths)
    first = 0
    for count, length, (keys, values) in zip(counts, lengths, sequences, strict=True):
        mask = torch.arange(length) <= torch.arange(length - count, length).unsqueeze(1)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[first : first + count].transpose(0, 1).double(),
            *(t.transpose(0, 1).repeat_interleave(3, 0).double() for t in (keys, values)),
            attn_mask=mask,
        ).transpose(0, 1)
        torch.testing.assert_close(output[first : first + count].double(), expected, rtol=0, atol=1e-5)
        first += count


def test_a_position_attends_alike_bit_for_bit_decoded_alone_or_verified_with_others():
    lengths, count = [40, 97, 130], 9
    _, cache, table = paged(0, lengths)
    query = draw(1, 3 * count, 6, 48)
    together = run_attention(query, cache, table, [count] * 3, lengths).view(3, count, 6, 48)
    for i in range(count):
        alone = query.view(3, count, 6, 48)[:, i].contiguous()
        single = run_attention(alone, cache, table, [1] * 3, [length - count + 1 + i for length in lengths])
        assert torch.equal(single, together[:, i])


def test_attention_takes_queries_that_are_part_of_a_wider_tensor():
    _, cache, table = paged(0, [50, 70])
    wide = draw(1, 2, 10, 48)
    expected = run_attention(wide[:, :6].contiguous(), cache, table, [1, 1], [50, 70])
    output = torch.zeros(2, 6, 48)
    starts, lengths = torch.arange(3, dtype=torch.int32), torch.tensor([50, 70], dtype=torch.int32)
    attend(wide[:, :6], cache, output, starts, lengths, table, 48**-0.5)
    assert torch.equal(output, expected)


def test_large_and_broken_scores_are_what_softmax_makes_of_them():
    _, cache, table = paged(0, [40, 40])
    query = draw(1, 2, 6, 48)
    query[0] *= 1e4
    query[1, 3] = torch.nan
    output = run_attention(query, cache, table, [1, 1], [40, 40])
    assert output[0].isfinite().all()
    assert output[1].isnan().all(dim=1).tolist() == [i == 3 for i in range(6)]


@pytest.mark.usefixtures("_fresh_library")
def test_a_compiler_that_takes_too_long_is_told_in_a_sentence(monkeypatch, tmp_path):
    slow = tmp_path / "bin" / "gcc"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    monkeypatch.setattr(library, "_COMPILE_TIMEOUT_SECONDS", 0.2)
    assert str(slow) in library.native_missing()
    assert "within 0.2 s" in library.native_missing()
    assert not list(tmp_path.rglob("*.so"))
