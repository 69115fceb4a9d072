"""What OpenRLHF's trainers ask before they build anything on their engines."""

from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF has an environment of its own: bash scripts/install.sh --openrlhf")

from efficient_rollout.openrlhf_plugin import actors


class Stock:
    """A trainer with two engines, which Ray knows by a reference to their answer."""

    def __init__(self, _pretrain, _strategy):
        engines = [SimpleNamespace(get_num_unfinished_requests=SimpleNamespace(remote=lambda n=n: n)) for n in range(2)]
        self.samples_generator = SimpleNamespace(vllm_engines=engines)


class Asking(actors._Asking, Stock):
    """The same, of this package."""


def test_what_ended_an_engine_is_told_where_its_trainer_is_made(monkeypatch):
    monkeypatch.setattr(actors, "place_prompts", lambda *_: None)
    strategy = SimpleNamespace(args=SimpleNamespace(efficient_rollout=SimpleNamespace(rollout_seed=None)))
    asked = []
    monkeypatch.setattr(actors.ray, "get", asked.extend)
    Asking("policy", strategy)
    assert asked == [0, 1], "every engine answers before anything waits for one"

    def died(_references):
        raise RuntimeError("it died at its start")

    monkeypatch.setattr(actors.ray, "get", died)
    with pytest.raises(RuntimeError, match="at its start"):
        Asking("policy", strategy)
