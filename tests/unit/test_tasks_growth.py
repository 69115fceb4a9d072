"""Growing a decoder: the same function, wider and deeper, and weights that training can tell apart."""

import copy
from dataclasses import replace

import pytest

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.policy_shape import PolicyShape
from efficient_rollout.tasks.training_plans import plan_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from efficient_rollout.tasks.growth import grow  # noqa: E402
from efficient_rollout.tasks.tokenizer import build_tokenizer  # noqa: E402
from efficient_rollout.tasks.training import build_model  # noqa: E402

CORE = PolicyShape(
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tied_embeddings=False,
)
GROWN = replace(CORE, hidden_size=192, intermediate_size=384, num_layers=5, num_heads=12, num_kv_heads=6)
NOT_INSERTED = (0, 2)


def _core(*, tied=False):
    torch.manual_seed(0)
    model = build_model(replace(CORE, tied_embeddings=tied), build_tokenizer(64)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)  # norms start at one, where forgetting to copy them would not show
    return model


def _logits(model):
    tokens = torch.randint(0, 128, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(tokens).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("change", [{}, {"num_layers": 2}, {"hidden_size": 64}], ids=["both", "width", "depth"])
def test_the_grown_model_computes_what_the_core_does(tied, spread, change):
    shape = replace(GROWN, tied_embeddings=tied, **change)
    if "hidden_size" in change:
        shape = replace(CORE, tied_embeddings=tied, num_layers=5)
    core = _core(tied=tied)
    expected = _logits(core)
    grown = grow(core, shape, spread=spread)
    assert grown.num_parameters() == shape.num_parameters
    assert expected.std() > 0.3
    torch.testing.assert_close(_logits(grown), expected, rtol=0, atol=1e-5)
    assert torch.equal(_logits(core), expected)


def test_blocks_are_inserted_after_each_of_the_core_and_add_nothing_yet():
    core, grown = _core(), grow(_core(), GROWN)
    assert len(grown.model.layers) == grown.config.num_hidden_layers == len(grown.config.layer_types) == 5
    for index, block in enumerate(grown.model.layers):
        inserted = index not in NOT_INSERTED
        assert (block.self_attn.o_proj.weight.count_nonzero() == 0) == inserted
        assert (block.mlp.down_proj.weight.count_nonzero() == 0) == inserted
        assert block.self_attn.q_proj.weight.count_nonzero() > 0
    for index, layer in zip(NOT_INSERTED, core.model.layers, strict=True):
        first_copy = grown.model.layers[index].mlp.up_proj.weight[:128, :64]
        torch.testing.assert_close(first_copy, layer.mlp.up_proj.weight / 3)


def test_without_spread_copies_stay_copies_and_with_it_training_moves_each_its_own_way():
    tokens = torch.randint(0, 128, (2, 30), generator=torch.Generator().manual_seed(1))
    different = {}
    for spread in (0.0, 1.0):
        model = grow(_core(), GROWN, spread=spread)
        start = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(2):  # a zero projection hides the rest of its block from the first step
            optimizer.zero_grad()
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
        for (name, weight), before in zip(model.named_parameters(), start.parameters(), strict=True):
            assert not torch.equal(weight, before), name
        first, second, third = (model.model.norm.weight - start.model.norm.weight).detach().view(3, 64)
        different[spread] = min((first - second).abs().max(), (second - third).abs().max()) / first.abs().max()
    assert different[0.0] < 0.01
    assert different[1.0] > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 448}, "intermediate_size 448: it must be 384"),
        ({"hidden_size": 256}, "intermediate_size 384: it must be 512"),
        ({"num_kv_heads": 4}, "num_kv_heads 4: it must be 6"),
        ({"head_dim": 64}, "head_dim 64: it must be 32"),
        ({"tied_embeddings": True}, "tied_embeddings True: it must be False"),
        ({"num_layers": 1}, "num_layers 1: it must be 2"),
    ],
)
def test_a_shape_the_core_cannot_become_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        grow(_core(), replace(GROWN, **change))


@pytest.mark.parametrize("tied", [True, False])
def test_the_bench_recipe_grows_its_core_to_its_shape(tied):
    plan = plan_of("bench", tied=tied)
    core, shape = plan.growth.core, plan.shape
    copies = shape.hidden_size // core.hidden_size
    widened = replace(
        core,
        hidden_size=copies * core.hidden_size,
        intermediate_size=copies * core.intermediate_size,
        num_heads=copies * core.num_heads,
        num_kv_heads=copies * core.num_kv_heads,
        num_layers=shape.num_layers,
    )
    assert (copies, shape.num_layers // core.num_layers) == (4, 3)
    assert widened == shape
