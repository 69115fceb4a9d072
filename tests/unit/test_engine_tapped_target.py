"""Each of the policy's layers is quantized into a packed layer of its own, whatever prefix it was given."""

import pytest

pytest.importorskip("vllm", reason="the layers are vLLM's")

import torch
from vllm.model_executor.layers.linear import ReplicatedLinear

from efficient_rollout.config import DrafterSettings
from efficient_rollout.drafter.packed_weights import PackedWeights
from efficient_rollout.drafter.schemes import make_scheme
from efficient_rollout.engine.tapped_target import TappedTargetConfig, packed_twin


def tapped_layer(config, prefix, outputs):
    # Its constructor asks for an engine's process groups.
    layer = ReplicatedLinear.__new__(ReplicatedLinear)
    torch.nn.Module.__init__(layer)
    layer.weight = torch.nn.Parameter(torch.randn(outputs, 32), requires_grad=False)
    layer.bias = None
    layer.quant_method = config.get_quant_method(layer, prefix)
    layer.quant_method.tap.show(layer)
    return layer


@pytest.fixture
def packed():
    return PackedWeights(make_scheme(DrafterSettings(scheme="int4", group_size=32), "cpu"), quantize_output_head=True)


def test_layers_of_one_prefix_are_packed_apart(packed):
    config = TappedTargetConfig(packed, products="stock")
    layers = [tapped_layer(config, prefix, 16 * (1 + i)) for i, prefix in enumerate(["mlp.up", "mlp.up", "", ""])]
    twins = [packed_twin(layer, packed) for layer in layers]
    assert [twin.out_features for twin in twins] == [16, 32, 48, 64]
    assert len(packed.layers) == 4
    assert packed.layers["mlp.up"] is twins[0], "a prefix that is unique is the name"


def test_a_layer_that_was_never_tapped_has_no_packed_twin(packed):
    assert packed_twin(torch.nn.Linear(32, 16), packed) is None
