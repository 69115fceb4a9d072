"""The packed kernels multiply by exactly the weights the reference quantizers chose, also after a requantization."""

import importlib.util

import pytest
import torch
from reference_quantizers import channel_reference, quantize_int4

from efficient_rollout.config import SCHEME_NAMES, DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import FLOAT_DTYPES, make_scheme, require_taken
from efficient_rollout.errors import SchemeUnavailableError

SETTINGS = [DrafterSettings(scheme="int8")] + [DrafterSettings(scheme="int4", group_size=g) for g in (32, 64, 128)]
IDS = ["int8", "int4-32", "int4-64", "int4-128"]


def random_weight(seed: int, dtype: torch.dtype, shape: tuple[int, int] = (192, 256)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(settings: DrafterSettings, weight: torch.Tensor) -> torch.Tensor:
    if settings.scheme == "int8":
        values, scales = channel_reference(weight, torch.int8)
        return values.float() * scales
    groups = []  # the last may be shorter
    for group in weight.split(settings.group_size, dim=1):
        values, scales, offsets = quantize_int4(group, group.shape[1], torch.bfloat16)
        groups.append((values.float() - 8) * scales.float() + offsets.float())
    return torch.cat(groups, dim=1)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pack_holds_the_reference_weights_bit_for_bit_after_requantizing(settings, dtype):
    scheme = make_scheme(settings, "cpu")
    packed = scheme.pack(random_weight(0, dtype), None)
    torch.testing.assert_close(packed.dequantize(), reference(settings, random_weight(0, dtype)), rtol=0, atol=1e-6)
    packed.requantize(random_weight(1, dtype), None)
    fresh = scheme.pack(random_weight(1, dtype), None)
    assert torch.equal(packed.dequantize(), fresh.dequantize())
    assert not torch.equal(packed.dequantize(), scheme.pack(random_weight(0, dtype), None).dequantize())


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("num_rows", [1, 3, 8, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_is_close_to_the_dequantized_product(settings, num_rows, with_bias):
    bias = random_weight(3, torch.float32, (1, 192))[0] if with_bias else None
    packed = make_scheme(settings, "cpu").pack(random_weight(0, torch.float32), bias)
    x = random_weight(2, torch.float32, (num_rows, 256))
    expected = torch.nn.functional.linear(x, packed.dequantize(), bias)
    # int8 quantizes activations too, to 1/127 of a row's largest value; int4 to 1/127 of a group's.
    relative_error = (packed(x) - expected).norm() / expected.norm()
    assert relative_error < (0.025 if settings.scheme == "int8" else 0.008)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_product_with_exact_activations_is_right_to_the_policy_s_own_rounding(settings, dtype, num_rows):
    generator = torch.Generator().manual_seed(2)
    # Integers, the largest in every group: whatever a kernel quantizes activations to, it holds them exactly.
    x = torch.randint(-127, 128, (num_rows, 256), generator=generator).to(dtype)
    x[:, ::32] = 127
    bias = random_weight(3, dtype, (1, 192))[0]
    packed = make_scheme(settings, "cpu").pack(random_weight(0, dtype) / 16, bias)
    exact = torch.nn.functional.linear(x.double(), packed.dequantize().double())
    # Of the sums, and of what they are with the bias.
    bound = torch.finfo(dtype).eps * (exact.abs() + (exact + bias).abs())
    # And what 256 float32 additions round.
    bound += 1e-6 * torch.nn.functional.linear(x.double().abs(), packed.dequantize().double().abs())
    product = packed(x)
    assert product.dtype == dtype
    assert ((product.double() - exact - bias).abs() <= bound).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_a_row_does_not_depend_on_its_neighbours(settings):
    packed = make_scheme(settings, "cpu").pack(random_weight(0, torch.bfloat16), None)
    x = random_weight(2, torch.bfloat16, (5, 256))
    x[1] *= 1000
    assert torch.equal(packed(x)[2], packed(x[2:3])[0])


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_what_is_not_a_number_is_passed_on(settings):
    packed = make_scheme(settings, "cpu").pack(random_weight(0, torch.float32), None)
    x = random_weight(2, torch.float32, (3, 256))
    x[1] = torch.nan
    assert packed(x).isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_compiled_code_sees_one_operator_and_the_newest_weights(settings):
    packed = make_scheme(settings, "cpu").pack(random_weight(0, torch.float32), None)
    packed.name(f"test.{settings.scheme}.{settings.group_size}")
    compiled = torch.compile(lambda x: packed(x) + 1, backend="aot_eager", fullgraph=True)
    x = random_weight(2, torch.float32, (3, 256))
    assert torch.equal(compiled(x), packed(x) + 1)
    packed.requantize(random_weight(1, torch.float32), None)
    assert torch.equal(compiled(x), packed(x) + 1)


@pytest.mark.parametrize(
    ("settings", "largest_share"), [(SETTINGS[0], 0.52), (SETTINGS[2], 0.32)], ids=["int8", "int4"]
)
def test_memory_is_what_the_scheme_promises(settings, largest_share):
    weight = random_weight(0, torch.bfloat16, (512, 512))
    assert make_scheme(settings, "cpu").pack(weight, None).num_bytes < largest_share * weight.nbytes


def test_int4_chooses_the_nearest_level():
    weight = random_weight(0, torch.float32)
    error = (make_scheme(SETTINGS[1], "cpu").pack(weight, None).dequantize() - weight).abs()
    step = (weight.view(192, 8, 32).amax(-1) - weight.view(192, 8, 32).amin(-1)) / 15
    # Half a step, and what rounding scale and offset to bfloat16 adds at the ends of the range.
    assert (error <= 0.54 * step.repeat_interleave(32, dim=1)).all()


def test_constant_and_zero_rows_survive():
    weight = torch.zeros(64, 64)
    weight[1] = 0.25
    for settings in (SETTINGS[0], SETTINGS[2]):
        restored = make_scheme(settings, "cpu").pack(weight, None).dequantize()
        torch.testing.assert_close(restored, weight, rtol=1e-6, atol=1e-6)


def test_layers_that_padding_would_more_than_double_are_left_out():
    weights = PackedWeights(make_scheme(SETTINGS[2], "cpu"), quantize_output_head=True)
    weights.refresh("narrow", torch.randn(64, 31), None)
    weights.refresh("low", torch.randn(7, 64), None)
    weights.refresh("no-float", torch.ones(64, 64, dtype=torch.float64), None)
    weights.refresh("half", torch.randn(64, 32), None)
    weights.refresh("odd", torch.randn(61, 96), None)
    assert set(weights.layers) == {"half", "odd"}


def test_a_policy_of_which_nothing_is_taken_is_refused_with_the_settings_that_take_it():
    narrow = [(32, 40), (40, 32)]
    with pytest.raises(SchemeUnavailableError) as raised:
        require_taken(DrafterSettings(scheme="int4", group_size=128), narrow, torch.float16)
    message = str(raised.value)
    assert "drafter.scheme=int4 takes no layer" in message
    assert "32 x 40, 40 x 32, in float16" in message
    assert "multiples of 16 x 128" in message
    assert "int8, int4 with drafter.group_size=64; or" in message
    for scheme in ("int8", "unquantized"):
        require_taken(DrafterSettings(scheme=scheme, group_size=128), narrow, torch.float16)
    require_taken(DrafterSettings(scheme="int4", group_size=128), [*narrow, (32, 64)], torch.float16)
    with pytest.raises(SchemeUnavailableError, match=r"in float64.*Available: none; or set .*enabled=false"):
        require_taken(DrafterSettings(scheme="int8"), [(64, 64)], torch.float64)


def test_another_shape_is_refused():
    packed = make_scheme(SETTINGS[0], "cpu").pack(torch.randn(64, 64), None)
    with pytest.raises(ValueError, match=r"\[64, 64\]"):
        packed.requantize(torch.randn(64, 128), None)


@pytest.mark.parametrize(
    ("name", "device", "why"),
    [
        *((name, "xpu", "there is none for xpu.*Available: none") for name in SCHEME_NAMES),
        ("fp8", "cpu", "there is none for cpu.*Available: int8"),
        ("int4", "cuda", "its kernels need Triton.*Available: unquantized"),
    ],
)
def test_no_scheme_is_offered_on_a_device_without_its_kernel(name, device, why):
    if device == "cuda" and importlib.util.find_spec("triton"):
        pytest.skip("this environment has Triton")
    with pytest.raises(SchemeUnavailableError, match=f"{name} is not available here: .*{why}"):
        make_scheme(DrafterSettings(scheme=name), device)
