"""vLLM's V2 runner, whose Python is the same in every build, has what the GPU path uses; and the checks see breaches.

The compiled operators of CUDA builds are checked by scripts/gpu_contract.sh.
"""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from packaging.version import Version
from test_symbols import unlisted
from vllm import __version__ as vllm_version

if Version(vllm_version) < Version("0.31"):
    pytest.skip("the V2 runner takes a draft model from vLLM 0.31 on", allow_module_level=True)

from efficient_rollout.engine.compat import installed_vllm
from efficient_rollout.engine.gpu import symbols
from efficient_rollout.engine.gpu.callbacks import callback_breaches
from efficient_rollout.engine.symbols import ENGINE_SYMBOLS
from efficient_rollout.errors import UnsupportedVersionError

DISTRIBUTION = installed_vllm()[0]


def stock(first, second=0, *, third=None):
    """Called, or overridden, in the tests below."""


def test_the_installed_vllm_keeps_the_contract():
    assert list(symbols.breaches(DISTRIBUTION)) == []
    symbols.check_v2(DISTRIBUTION)


def test_every_import_is_listed(repository: Path):
    sources = list((repository / "efficient_rollout" / "engine" / "gpu").glob("*.py"))
    moved = [name for names in symbols.MOVED for name in names]
    assert unlisted(sources, "vllm", [*ENGINE_SYMBOLS, *symbols.V2_SYMBOLS, *symbols.CALLED, *moved]) == []


def test_no_name_is_listed_twice():
    assert len(set(symbols.V2_SYMBOLS)) == len(symbols.V2_SYMBOLS)


def test_a_name_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(symbols, "V2_SYMBOLS", ("vllm.config:VllmConfig.no_such_thing",))
    monkeypatch.setattr(symbols, "MOVED", (("vllm.none:A", "vllm.config:NoSuchClass"),))
    monkeypatch.setattr(symbols, "CALLED", {"vllm.none:function": ""})
    monkeypatch.setattr(symbols, "OVERRIDDEN", {})
    with pytest.raises(UnsupportedVersionError, match=r"no_such_thing is missing; vllm.none:A or .*; vllm.none:func"):
        symbols.check_v2(DISTRIBUTION)


@pytest.mark.parametrize(
    ("passed", "breach"),
    [
        ("first * third", None),
        ("* first", None),
        ("second first", "takes first, second first, not second, first"),
        ("first * fourth", "takes no fourth"),
        ("* third", "needs first too"),
    ],
)
def test_a_call_that_would_fail_is_named(monkeypatch: pytest.MonkeyPatch, passed: str, breach: str | None):
    monkeypatch.setattr("vllm.config.stock_of_this_test", stock, raising=False)
    found = list(symbols._call_breaches("vllm.config:stock_of_this_test", passed))
    assert found == ([breach] if breach else [])


@pytest.mark.parametrize(
    ("ours", "breach"),
    [
        ("first, second=0, third=None", None),
        ("first, **others", None),
        ("first, *, third, second", None),
        ("first, third=None", "is called with second"),
        ("other=None, **others", "is called with first"),
        ("first, second, third, fourth", "is called without fourth"),
    ],
)
def test_an_override_that_would_fail_is_named(monkeypatch: pytest.MonkeyPatch, ours: str, breach: str | None):
    monkeypatch.setattr("vllm.config.stock_of_this_test", stock, raising=False)
    monkeypatch.setattr("vllm.config.ours_of_this_test", eval(f"lambda {ours}: None"), raising=False)
    target = "vllm.config:{}_of_this_test"
    found = list(symbols._override_breaches(target.format("stock"), target.format("ours")))
    assert [what.partition(",")[0] for what in found] == ([breach] if breach else [])


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
def test_a_callback_that_would_fail_is_named(monkeypatch: pytest.MonkeyPatch, ours: str, breach: str | None):
    monkeypatch.setattr("vllm.config.Manager_of_this_test", Manager, raising=False)
    monkeypatch.setattr("vllm.config.ours_of_this_test", eval(f"lambda {ours}: None"), raising=False)
    found = list(
        callback_breaches("vllm.config:Manager_of_this_test.capture", "forward_fn", "vllm.config:ours_of_this_test")
    )
    assert (found == []) if breach is None else (breach in found[0])


def test_an_operator_that_changed_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch):
    tool = runpy.run_path(str(repository / "scripts" / "gpu_contract.py"))
    takes = {name: arguments.split() for name, arguments in symbols.OPERATORS.items()}
    takes["marlin_gemm"] = takes["marlin_gemm"][:-1]
    del takes["cutlass_scaled_mm"]
    monkeypatch.setitem(tool["operator_breaches"].__globals__, "operator_arguments", lambda name: takes.get(name, []))
    marlin, cutlass = tool["operator_breaches"]()
    assert marlin.startswith("operator marlin_gemm takes a, c_or_none")
    assert cutlass.startswith("operator cutlass_scaled_mm takes nothing: it is missing")


def test_what_changed_between_versions_is_told(repository: Path):
    changes = runpy.run_path(str(repository / "scripts" / "gpu_contract.py"))["changes"]
    old, new = ({"takes": {"same": "a b", "f": takes}} for takes in ("a b", "a c"))
    assert list(changes(old, new)) == ["f: - b; + c"]
    assert list(changes(old, {"takes": {"same": "b a", "f": "a b"}})) == ["same: another order"]
