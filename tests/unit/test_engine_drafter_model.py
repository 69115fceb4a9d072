"""The drafter's layers have names of their own in the engine, and whatever it does not own is the policy's."""

import pytest

pytest.importorskip("vllm", reason="the attention layers are vLLM's")

import torch
from vllm.model_executor.layers.attention.attention import Attention

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.drafter_model import _link, _register
from efficient_rollout.errors import UnsupportedModelError


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
