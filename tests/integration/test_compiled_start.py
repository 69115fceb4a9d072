"""A compiled engine's second start loads what the first compiled, and nothing of the weights is in it.

Both start from one path. The first finds the new weights there and the second the old, which then become the new.
"""

import shutil

import engine_support
import pytest
from weight_support import PROMPTS, fingerprints, logprobs, sync

from efficient_rollout.drafter.cpu.native.library import native_missing
from efficient_rollout.engine.engine_args import EXECUTOR
from efficient_rollout.engine.statistics import take_rollout_stats

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Each start's worker is a process of its own, and shares nothing with the one before but the cache. The rest of the
# engine is here: every request is there before the first tick, so that ticks and drafts are the same every time.
CLASSES = {
    "worker_cls": "scripted_engine.FaultyWorker",
    "distributed_executor_backend": EXECUTOR,
    "enforce_eager": False,
    "max_num_seqs": 16,
}


# With each, one of the ways in which graphs call the policy's own products.
KERNELS = {"unquantized": "stock", "int8": "auto" if native_missing() else "native"}


@pytest.fixture(scope="module", params=KERNELS)
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return [
        engine_support.random_policy(folder / str(seed), seed=seed, tied=True, num_hidden_layers=1) for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def start(scheme, policies, tmp_path_factory):
    """Start an engine whose policy's path holds that checkpoint; every engine has one cache."""
    root, path = tmp_path_factory.mktemp(scheme), policies[0].parent / f"policy of {scheme}"
    settings = {
        "verify_kernel": KERNELS[scheme],
        "drafter": {"scheme": scheme},
        "controller": {"rule": "always", "max_draft_tokens": 3},
    }

    def start_on(checkpoint):
        shutil.copytree(checkpoint, path, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_CACHE_ROOT", str(root))
            return engine_support.start(path, settings, **CLASSES)

    return start_on


def facts(engine):
    """Log-probabilities, the drafter's weights, and drafts as a share and one by one."""
    take_rollout_stats(engine.collective_rpc)
    engine.collective_rpc("forget_drafts")
    found = logprobs(engine), fingerprints(engine), engine.collective_rpc("draft_digest")
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_drafter_faults == 0
    return *found, stats.num_accepted_tokens, stats.num_draft_tokens


@pytest.fixture(scope="module")
def of_the_first_start(start, policies):
    """Facts with the new weights, from an engine that compiled."""
    engine = start(policies[1])
    assert engine.collective_rpc("compilations")[0] == {"compiled": 2, "loaded": 0}
    found = facts(engine)
    engine_support.stop(engine)
    return found


@pytest.fixture(scope="module")
def engine(start, policies, of_the_first_start):
    """The second start, with the old weights."""
    engine = start(policies[0])
    yield engine
    engine_support.stop(engine)


def test_policy_and_drafter_are_loaded(engine):
    assert engine.collective_rpc("compilations")[0] == {"compiled": 0, "loaded": 2}


def test_what_is_loaded_computes_with_the_weights_that_a_sync_brings(engine, policies, of_the_first_start):
    sync(engine, policies[0])
    old = facts(engine)
    assert old[0] != of_the_first_start[0]
    assert not set(old[1].items()) & set(of_the_first_start[1].items())
    sync(engine, policies[1])
    assert facts(engine) == of_the_first_start


def test_a_loaded_drafter_of_the_policys_own_layers_is_always_right(engine, scheme):
    take_rollout_stats(engine.collective_rpc)
    for temperature in (0.0, 1.0):
        engine_support.generate(engine, PROMPTS, temperature=temperature, max_tokens=60)
    stats = take_rollout_stats(engine.collective_rpc)
    assert stats.num_draft_tokens > 400
    if scheme == "unquantized":
        assert stats.num_accepted_tokens == stats.num_draft_tokens
    else:
        assert stats.num_accepted_tokens > 0.7 * stats.num_draft_tokens
