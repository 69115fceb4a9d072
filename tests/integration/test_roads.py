"""The roads through the package stay short: whoever changes a tick or a weight sync has so many files to read."""

import engine_support
import pytest
from roads import files_of_a_tick, files_run

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    policy = engine_support.random_policy(tmp_path_factory.mktemp("policy"))
    engine = engine_support.start(policy, {"drafter": {"scheme": "int8"}})
    yield engine
    engine_support.stop(engine)


def test_a_tick_passes_few_files(engine):
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=60, ignore_eos=True, detokenize=False)
    files = files_of_a_tick(engine, params)
    assert {"controller/tick.py", "engine/cpu/proposer.py", "drafter/cpu/layers.py"} <= set(files)
    # An engine before it in this process may have registered the native kernel's attention.
    assert len(set(files) - {"engine/cpu/native_attention.py"}) <= 21, files


def test_a_weight_sync_passes_few_files(engine):
    files = files_run(lambda: engine.collective_rpc("reload_weights"))
    assert {"engine/weights/sync.py", "drafter/packed_weights.py"} <= set(files)
    assert len(files) <= 13, files
