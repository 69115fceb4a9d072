"""Policies that an engine reads in an unusual way: drafts are those of the policy it has, and change no token."""

import json
import shutil

import engine_support
import pytest

from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = pytest.mark.engine

PROMPTS = [[3 + i, 40 + i, 9] * (1 + i) for i in range(6)]
SETTINGS = {"drafter": {"scheme": "int8"}, "controller": {"rule": "always", "max_draft_tokens": 3}}
WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention"] * 2,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return engine_support.random_policy(tmp_path_factory.mktemp("policy"), spread=0.2)


def own_code(policy):
    """The policy's configuration becomes one that only code beside it knows."""
    values = json.loads((policy / "config.json").read_text())
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (policy / "config.json").write_text(json.dumps(values))
    (policy / "configuration_own.py").write_text(
        "from transformers import Qwen3Config\n\n\nclass OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
    )


def without_weights(policy):
    for file in policy.glob("*.safetensors"):
        file.unlink()


def greedy(policy, settings, options):
    # vLLM's Transformers backend changes transformers' own classes, in the process that it is in.
    with engine_support.running(policy, settings, processes="model_impl" in options, **options) as engine:
        tokens = [output.token_ids for (output,) in engine_support.generate(engine, PROMPTS, max_tokens=40)]
        return tokens, None if settings is None else take_rollout_stats(engine.collective_rpc)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"hf_overrides": ROPE}, None),
        pytest.param({"model_impl": "transformers"}, None, marks=pytest.mark.slow),
        pytest.param({"hf_overrides": WINDOW}, None, marks=pytest.mark.slow),
        pytest.param({"trust_remote_code": True}, own_code, marks=pytest.mark.slow),
        pytest.param({"load_format": "dummy"}, without_weights, marks=pytest.mark.slow),
        pytest.param({"kv_cache_dtype": "fp8"}, None, marks=pytest.mark.slow),
    ],
    ids=["rope", "transformers", "window", "own-code", "dummy", "fp8-kv-cache"],
)
def test_greedy_tokens_equal_stock_and_most_drafts_stand(checkpoint, tmp_path, options, change):
    policy = shutil.copytree(checkpoint, tmp_path / "policy")
    if change is not None:
        change(policy)
    stock, _ = greedy(policy, None, options)
    tokens, stats = greedy(policy, SETTINGS, options)
    assert tokens == stock
    assert stats.num_drafter_faults == 0
    assert stats.packed_weight_share == 1.0
    assert stats.accepted_per_position[0] / stats.drafted_per_position[0] > 0.7
