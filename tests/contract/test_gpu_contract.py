"""vLLM's V2 runner, whose Python is the same in every build, has what the GPU path uses; and the checks see breaches.

The compiled operators of CUDA builds are checked by scripts/gpu_contract.sh.
"""

import runpy

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import names_of_vllm_v2 as names
from checked_callbacks import callback_breaches
from names_of_vllm import OF_ENGINES, OF_SERVERS
from test_symbols import unlisted

from efficient_rollout.gpu_check.products import OPERATORS


def test_the_installed_vllm_keeps_the_contract():
    assert list(names.breaches()) == []


def test_every_import_of_the_engine_s_is_listed(repository):
    sources = list((repository / "efficient_rollout" / "engine").rglob("*.py"))
    moved = [name for places in names.MOVED for name in places]
    assert unlisted(sources, "vllm", [*OF_ENGINES, *OF_SERVERS, *names.OF_V2, *names.CALLED, *moved]) == []


def test_no_name_is_listed_twice():
    assert len(set(names.OF_V2)) == len(names.OF_V2)


def test_a_name_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(names, "OF_V2", ("vllm.config:VllmConfig.no_such_thing",))
    monkeypatch.setattr(names, "MOVED", (("vllm.none:A", "vllm.config:NoSuchClass"),))
    monkeypatch.setattr(names, "CALLED", {"vllm.none:function": ""})
    monkeypatch.setattr(names, "OVERRIDDEN", {})
    monkeypatch.setattr(names, "CALLBACKS", ())
    gone, moved, called = names.breaches()
    assert gone == "vllm.config:VllmConfig.no_such_thing is missing"
    assert moved == "vllm.none:A or vllm.config:NoSuchClass is missing"
    assert called.startswith("vllm.none:function is missing")


class Manager:
    """Calls what it is given, as stock's managers of graphs do."""

    def capture(self, forward_fn, is_new=False):
        """In other words in newer versions."""
        extra = {}
        if is_new:
            extra["num_speculative_steps"] = 3
        return lambda mode: forward_fn(1, 2, mode, **extra)


@pytest.mark.parametrize(
    ("ours", "breach"),
    [
        ("self, requests, tokens, mode, num_speculative_steps=None", None),
        ("self, requests, tokens, mode, **others", None),
        ("self, requests, tokens, mode", "got an unexpected keyword argument 'num_speculative_steps'"),
        ("self, requests, tokens, mode, num_speculative_steps", "missing a required argument: 'num_speculative_steps'"),
        ("self, requests, mode, num_speculative_steps=None", "multiple values"),
    ],
)
def test_a_callback_that_would_fail_is_named(monkeypatch, ours, breach):
    monkeypatch.setattr("vllm.config.Manager_of_this_test", Manager, raising=False)
    monkeypatch.setattr("vllm.config.ours_of_this_test", eval(f"lambda {ours}: None"), raising=False)
    found = list(
        callback_breaches("vllm.config:Manager_of_this_test.capture", "forward_fn", "vllm.config:ours_of_this_test")
    )
    assert (found == []) if breach is None else (breach in found[0])


def test_an_operator_that_changed_is_named(repository, monkeypatch):
    tool = runpy.run_path(str(repository / "scripts" / "gpu_contract.py"))
    takes = {name: arguments.split() for name, arguments in OPERATORS.items()}
    takes["marlin_gemm"] = takes["marlin_gemm"][:-1]
    del takes["cutlass_scaled_mm"]
    monkeypatch.setitem(tool["operator_breaches"].__globals__, "operator_arguments", lambda name: takes.get(name, []))
    marlin, cutlass = tool["operator_breaches"]()
    assert marlin.startswith("operator marlin_gemm takes a, c_or_none")
    assert cutlass.startswith("operator cutlass_scaled_mm takes nothing: it is missing")
