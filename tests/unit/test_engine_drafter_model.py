"""The drafter's layers have names of their own in the engine, and whatever it does not own is the policy's.

One that is the policy itself, in whole or in part, is refused or said so.
"""

import pytest

pytest.importorskip("vllm", reason="the attention layers are vLLM's")

import torch
from vllm.model_executor.layers.attention.attention import Attention

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.drafter_model import LinkedLayer, LinkReport, _link, _register, require_quantized
from efficient_rollout.errors import SchemeUnavailableError, UnsupportedModelError

INT4 = DrafterSettings(scheme="int4")


def attention(name, *, num_kv_heads=2, has_sink=False, owner=None):
    # Its constructor asks for an engine's configuration.
    layer = Attention.__new__(Attention)
    torch.nn.Module.__init__(layer)
    layer.layer_name, layer.num_kv_heads, layer.head_size, layer.has_sink = name, num_kv_heads, 32, has_sink
    layer.kv_sharing_target_layer_name = owner
    return layer


def test_layers_that_call_themselves_what_the_policys_do_are_registered_beside_them():
    policy = {name: attention(name) for name in ("0.attn", "1.attn")}
    built = {name: attention(name) for name in ("0.attn", "1.attn")}
    engines = dict(policy)
    twins = _register(built, engines)
    assert engines == policy | {"draft_model.0.attn": built["0.attn"], "draft_model.1.attn": built["1.attn"]}
    assert twins == {"draft_model.0.attn": policy["0.attn"], "draft_model.1.attn": policy["1.attn"]}
    assert [layer.layer_name for layer in built.values()] == ["draft_model.0.attn", "draft_model.1.attn"]
    assert [layer.layer_name for layer in policy.values()] == ["0.attn", "1.attn"], "compiled code knows these"


@pytest.mark.parametrize(
    ("policys", "fault"),
    [
        ({"0.attn": attention("0.attn")}, r"such as 1\.attn"),
        ({"0.attn": attention("0.attn"), "1.attn": torch.nn.Identity()}, r"such as 1\.attn"),
        ({"0.attn": attention("0.attn"), "1.attn": attention("1.attn", has_sink=True)}, r"such as 1\.attn"),
        ({"0.attn": attention("0.attn"), "1.attn": attention("1.attn", owner="0.attn")}, r"such as 1\.attn"),
        ({"0.attn": attention("0.attn"), "1.attn": attention("1.attn", num_kv_heads=4)}, "differ in heads"),
    ],
    ids=["unpaired", "another-kind", "sinks", "shared-kv", "sizes"],
)
def test_layers_that_cannot_be_paired_are_refused_with_the_way_out(policys, fault):
    built = {name: attention(name) for name in ("0.attn", "1.attn")}
    with pytest.raises(UnsupportedModelError, match=rf"{fault}.*enabled=false"):
        _register(built, dict(policys))


class Block(torch.nn.Module):
    """Attention, a norm, a weight beside them, and a layer under two names, as some architectures have."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = attention("attn"), torch.nn.LayerNorm(4)
        self.also_norm = self.norm
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("offset", torch.zeros(1))
        self.absent = None


def test_all_that_is_not_attention_or_packed_is_the_policys_own():
    packed = PackedWeights(make_scheme(DrafterSettings(), "cpu"), quantize_output_head=True)
    drafter, policy = torch.nn.Sequential(Block()), torch.nn.Sequential(Block())
    own_attention = drafter[0].attn
    _link(drafter, policy, packed)
    assert drafter[0] is not policy[0]
    assert drafter[0].attn is own_attention
    for name in ("norm", "also_norm", "scale", "offset"):
        assert getattr(drafter[0], name) is getattr(policy[0], name), name


def report(*unquantized: str, shape: tuple[int, int] = (64, 96)) -> LinkReport:
    """Three layers and a head of four times their size."""
    shapes = dict.fromkeys(("qkv", "up", "down"), shape) | {"head": (4 * shape[0], shape[1])}
    return LinkReport(
        tuple(LinkedLayer(name, shape, name not in unquantized, name == "head") for name, shape in shapes.items())
    )


def test_counts_are_of_layers_and_the_share_is_of_weights():
    linked = report("up", "down")
    assert (linked.num_packed, linked.num_unquantized) == (2, 2)
    assert linked.packed_weight_share == 5 / 7


@pytest.mark.parametrize(
    ("unquantized", "settings"),
    [
        ((), INT4),
        (("head",), DrafterSettings(scheme="int4", quantize_output_head=False)),
        (("qkv", "up", "down", "head"), DrafterSettings(scheme="unquantized")),
    ],
    ids=["all", "but-the-head-by-choice", "none-by-choice"],
)
def test_a_drafter_that_is_what_was_asked_for_is_not_mentioned(unquantized, settings, caplog):
    require_quantized(report(*unquantized), settings, torch.float16)
    assert caplog.text == ""


def test_a_part_left_out_is_said_with_its_share_and_names(caplog):
    require_quantized(report("up", "head"), INT4, torch.float16)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "drafter.scheme=int4 quantizes only 29 % of the weights" in record.message
    assert "2 of 4 layers" in record.message
    assert "up (64 x 96), head (256 x 96)" in record.message


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((64, 24), INT4, r"takes no layer.*64 x 24, 256 x 24, in float16.*int4 with drafter.group_size=32"),
        ((64, 96), INT4, r"quantized no layer.*qkv \(64 x 96\).*cannot see their weights.*enabled=false"),
        (
            (64, 96),
            DrafterSettings(scheme="int4", quantize_output_head=False),
            r"quantized no layer of this policy \(qkv \(64 x 96\), up \(64 x 96\), down \(64 x 96\)\)",
        ),
    ],
    ids=["too-narrow", "hidden-from-the-taps", "without-the-head"],
)
def test_a_drafter_of_which_nothing_is_quantized_is_refused(shape, settings, message):
    everything = report("qkv", "up", "down", "head", shape=shape)
    with pytest.raises(SchemeUnavailableError, match=message):
        require_quantized(everything, settings, torch.float16)
