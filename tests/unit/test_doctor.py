"""The doctor's verdicts, without vLLM and veRL: those are looked at in the contract tests."""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet

from efficient_rollout import doctor
from efficient_rollout.doctor import Finding


@pytest.mark.parametrize(
    ("installed", "state"),
    [("0.9.1", "ok"), ("0.10.0", "bad"), ("0.8.9", "bad"), ("0.10.0.dev0", "bad"), (None, "bad")],
)
def test_version_outside_the_range_is_bad_and_says_what_to_install(installed: str | None, state: str) -> None:
    finding = doctor._version("verl", installed, SpecifierSet(">=0.9,<0.10"))
    assert finding.state == state
    assert ("pip install 'verl<0.10,>=0.9'" in finding.advice) == (state == "bad")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Iterator[Finding]]], None]:
    """Replaces every section by one."""

    def replace(section: Callable[[], Iterator[Finding]]) -> None:
        for name in ("_versions", "_plugins", "_schemes", "_patches"):
            monkeypatch.setattr(doctor, name, lambda: iter(()))
        monkeypatch.setattr(doctor, "_machine", section)

    return replace


@pytest.mark.parametrize(("state", "exit_code"), [("ok", 0), ("note", 0), ("bad", 1)])
def test_exit_code_tells_a_bad_finding(
    state: doctor.State,
    exit_code: int,
    only: Callable[[Callable[[], Iterator[Finding]]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(lambda: iter([Finding("machine", "thing", "value", state, "do this"), Finding("machine", "other", "well")]))
    assert doctor.run_doctor(argparse.Namespace(json=True)) == exit_code
    row, _ = json.loads(capsys.readouterr().out)
    assert row == {"section": "machine", "name": "thing", "value": "value", "state": state, "advice": "do this"}
    assert doctor.run_doctor(argparse.Namespace(json=False)) == exit_code
    printed = capsys.readouterr().out
    assert "do this" in printed
    assert ("1 unusable" in printed) == (state == "bad")


def test_a_section_that_fails_is_a_bad_finding(only: Callable[[Callable[[], Iterator[Finding]]], None]) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("machine", "first", "seen")
        raise OSError("libcuda is missing")

    only(broken)
    findings = doctor.examine()
    assert findings[-1].state == "bad"
    assert "libcuda is missing" in findings[-1].value


def test_noise_on_standard_output_does_not_reach_the_report(
    only: Callable[[Callable[[], Iterator[Finding]]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy() -> Iterator[Finding]:
        print("INFO a framework is loading")  # noqa: T201 - what is tested
        yield Finding("machine", "thing", "value")

    only(noisy)
    doctor.run_doctor(argparse.Namespace(json=True))
    assert json.loads(capsys.readouterr().out)


def test_missing_entry_point_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    findings = list(doctor._plugins())
    assert [finding.state for finding in findings] == ["bad", "bad"]
    assert "pip install -e ." in findings[0].advice


def test_cuda_companion_of_a_cpu_torch_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions(names: tuple[str, ...]) -> dict[str, str]:
        present = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
        return {name: present[name] for name in names if name in present}

    monkeypatch.setattr(doctor.provenance, "package_versions", versions)
    bad = {finding.name: finding.advice for finding in doctor._versions() if finding.state == "bad"}
    assert "torchaudio" not in bad
    assert "pip uninstall torchvision" in bad["torchvision"]


def test_small_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.provenance.hardware()
    monkeypatch.setattr(doctor.provenance, "hardware", lambda: real | {"shared_memory_bytes": 64 * 2**20})
    finding = next(finding for finding in doctor._machine() if finding.name == "/dev/shm")
    assert finding.state == "note"
    assert "--shm-size" in finding.advice


@pytest.mark.parametrize(
    ("flags", "gpus", "state"), [({"avx2"}, [], "note"), ({"avx2", "avx512f"}, [], "ok"), ({"avx2"}, ["H100"], "ok")]
)
def test_a_machine_without_avx512_is_told_to_use_float32(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], gpus: list[str], state: doctor.State
) -> None:
    real = doctor.provenance.hardware()
    monkeypatch.setattr(doctor.provenance, "hardware", lambda: real | {"gpus": gpus})
    monkeypatch.setattr(doctor.provenance, "cpu_flags", lambda: frozenset(flags))
    finding = next(finding for finding in doctor._machine() if finding.name == "cpu features")
    assert finding.state == state
    assert ("float32" in finding.advice) == (state == "note")
