"""A patch replaces exactly the code it was written for, once, and refuses anything else."""

import importlib.util
import sys
import types

import pytest

from efficient_rollout.errors import PatchDriftError
from efficient_rollout.patching import Patch, apply_patches, describe, source_sha256, state


def original(x):
    """The upstream function of these tests."""
    return x + 1


def drifted(x):
    """What a later version made of it."""
    return x + 2


@pytest.fixture
def upstream(monkeypatch):
    module = types.ModuleType("toy_upstream")
    module.function = original
    module.Holder = type("Holder", (), {"method": staticmethod(original)})
    monkeypatch.setitem(sys.modules, "toy_upstream", module)
    return module


def make_patch(**changes):
    return Patch(
        **{
            "name": "times-ten",
            "target": "toy_upstream:function",
            "make_replacement": lambda function: lambda x: 10 * function(x),
            "reason": "test",
            "tested_versions": "1.0",
            "source_sha256": frozenset({source_sha256(original)}),
            "remove_when": "never",
            **changes,
        }
    )


def test_applied_once_however_often_it_is_asked_for(upstream):
    apply_patches([make_patch()])
    apply_patches([make_patch()])
    assert upstream.function(1) == 20
    assert state(make_patch()) == "applied"


@pytest.mark.parametrize("target", ["toy_upstream:Holder.gone", "toy_upstream.gone:function"])
def test_a_target_that_is_not_there_is_drift_unless_nothing_is_to_be_mended(upstream, target):
    assert state(make_patch(target=target)) == "drifted"
    assert state(make_patch(target=target, is_needed=lambda: True)) == "drifted"
    unneeded = make_patch(target=target, is_needed=lambda: False)
    assert state(unneeded) == "not needed"
    apply_patches([unneeded])
    with pytest.raises(PatchDriftError, match="times-ten"):
        apply_patches([make_patch(target=target)])


def test_refuses_code_it_does_not_know_and_applies_nothing_then(upstream):
    upstream.function = drifted
    known = make_patch(name="known", target="toy_upstream:Holder.method")
    with pytest.raises(PatchDriftError, match=r"times-ten.*toy_upstream:function.*tested: 1\.0"):
        apply_patches([known, make_patch()])
    assert upstream.function(1) == 3
    assert upstream.Holder.method(1) == 2


def test_left_alone_where_upstream_has_no_fault(upstream):
    upstream.function = drifted
    patch = make_patch(is_needed=lambda: False)
    apply_patches([patch])
    assert upstream.function is drifted
    assert state(patch) == "not needed"


def test_the_description_has_what_a_reader_needs(upstream):
    (row,) = describe([make_patch()])
    assert row == {
        "name": "times-ten",
        "target": "toy_upstream:function",
        "state": "not applied",
        "reason": "test",
        "tested_versions": "1.0",
        "remove_when": "never",
    }


def test_hash_ignores_trailing_blanks_only(tmp_path):
    text = "def function(x):\n    return x + 1\n"
    hashes = []
    for number, source in enumerate((text, text.replace("\n", " \t\n"), text.replace("    ", "  "))):
        path = tmp_path / f"toy_upstream_{number}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        hashes.append(source_sha256(module.function))
    assert hashes[0] == hashes[1] != hashes[2]
