"""vLLM loads what torch's inductor compiled, where the ledger was applied."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from torch._inductor import config as inductor
from vllm.compilation import decorators
from vllm.compilation.counter import compilation_counter
from vllm.config import VllmConfig

from efficient_rollout.engine import ledger


class Scaled(torch.nn.Module):
    """What vLLM's decorator makes of a model, as far as the loader asks."""

    _is_encoder = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.vllm_config = VllmConfig()
        self.compilation_config = self.vllm_config.compilation_config

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + 1.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The model, and the path it was compiled to as vLLM does on a CPU."""
    model, path = Scaled(), tmp_path_factory.mktemp("graph") / "model"
    with torch._dynamo.config.patch(enable_aot_compile=True):
        compiled = torch.compile(
            model.forward,
            fullgraph=True,
            backend="inductor",
            options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
        )
    with torch.no_grad():
        compiled.aot_compile(((torch.ones(3),), {})).save_compiled_function(str(path))
    return model, str(path)


def test_a_graph_is_loaded_and_computes_with_the_models_own_weights(saved):
    _, path = saved
    model = Scaled()
    model.scale.data = torch.tensor([5.0, 6.0, 7.0])
    ledger.apply()
    with compilation_counter.expect(num_aot_artifacts_loaded=1):
        loaded = decorators._try_load_aot_compiled_fn(model, path)
    assert loaded(model, torch.ones(3)).tolist() == [6.0, 7.0, 8.0]
    model.scale.data = torch.tensor([0.0, 1.0, 2.0])
    assert loaded(model, torch.ones(3)).tolist() == [1.0, 2.0, 3.0]


def test_a_graph_that_may_have_weights_in_it_is_not(saved):
    ledger.apply()
    with inductor.patch(freezing=True):
        assert decorators._try_load_aot_compiled_fn(*saved) is None


def test_a_damaged_graph_is_none(saved, tmp_path):
    model, path = saved
    ledger.apply()
    whole = Path(path).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"no pickle" * 9}.items():
        (tmp_path / name).write_bytes(content)
        assert decorators._try_load_aot_compiled_fn(model, str(tmp_path / name)) is None
