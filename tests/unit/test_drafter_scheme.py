"""Layers that are no whole tiles: the real weights, quantized as if nothing were beside them, by every kernel."""

import pytest
import torch
from test_drafter_schemes import IDS, SETTINGS, reference

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.scheme import PaddedLinear
from efficient_rollout.drafter.schemes import FLOAT_DTYPES, make_scheme

# Outputs x inputs: an odd vocabulary and hidden size 160, odd inputs alone, odd outputs alone.
SHAPES = [(131, 160), (96, 1000), (192, 250), (193, 64)]


def one_sided(seed: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Weights from 1 on: a zero beside them would widen the range of every group it stands in."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 1).to(dtype)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_last_group_has_the_range_of_its_real_weights_at_first_and_after_requantizing(settings, shape, dtype):
    packed = make_scheme(settings, "cpu").pack(one_sided(0, shape, dtype), None)
    assert isinstance(packed, PaddedLinear)
    torch.testing.assert_close(packed.dequantize(), reference(settings, one_sided(0, shape, dtype)), rtol=0, atol=1e-6)
    packed.requantize(one_sided(1, shape, dtype), None)
    torch.testing.assert_close(packed.dequantize(), reference(settings, one_sided(1, shape, dtype)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_that_of_the_real_inputs_and_outputs(settings, shape, dtype, with_bias):
    outputs, inputs = shape
    bias = one_sided(3, (1, outputs), dtype)[0] if with_bias else None
    packed = make_scheme(settings, "cpu").pack(one_sided(0, shape, dtype) / 64, bias)
    x = one_sided(2, (6, inputs), dtype) - 1.5
    expected = torch.nn.functional.linear(x.float(), packed.dequantize(), None if bias is None else bias.float())
    product = packed(x.view(2, 3, inputs))
    assert (product.shape, product.dtype, product.is_contiguous()) == ((2, 3, outputs), dtype, True)
    # Activations in int8 or bfloat16, sums in float32, results in the policy's dtype.
    error = (product.view(6, outputs).float() - expected).norm() / expected.norm()
    assert error < 0.03
    one_more = torch.nn.functional.linear(x.float()[:, 1:], packed.dequantize()[:, :-1])
    assert (product.view(6, outputs).float() - one_more).norm() > 0.2 * expected.norm(), "the bound must tell"


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_rows_are_independent_and_what_is_not_a_number_stays_in_its_row(settings):
    packed = make_scheme(settings, "cpu").pack(one_sided(0, (131, 160), torch.float16), None)
    x = one_sided(2, (5, 160), torch.float16)
    x[1] = torch.nan
    assert packed(x).isnan().any(dim=1).tolist() == [False, True, False, False, False]
    assert torch.equal(packed(x)[2], packed(x[2:3])[0])


def test_padding_is_counted_and_whole_tiles_have_none():
    scheme = make_scheme(DrafterSettings(scheme="int4", group_size=64), "cpu")
    odd = scheme.pack(torch.randn(131, 160), torch.randn(131))
    assert odd.num_bytes == 144 * 192 * (0.5 + 4 / 64) + 4 * 131
    assert not isinstance(scheme.pack(torch.randn(144, 192), None), PaddedLinear)


def test_compiled_code_sees_one_operator_of_the_real_shape():
    packed = make_scheme(DrafterSettings(scheme="int4"), "cpu").pack(torch.randn(131, 160), torch.randn(131))
    packed.name("test.padded")
    compiled = torch.compile(lambda x: packed(x) + 1, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 160)
    assert torch.equal(compiled(x), packed(x) + 1)


def test_another_shape_is_refused_by_its_real_size():
    packed = make_scheme(DrafterSettings(scheme="int8"), "cpu").pack(torch.randn(131, 160), None)
    with pytest.raises(ValueError, match=r"\[131, 160\].*\[131, 161\]"):
        packed.requantize(torch.randn(131, 161), None)
