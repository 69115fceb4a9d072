"""The command from end to end, with steps that are none."""

import json
import sys

import pytest

from efficient_rollout.__main__ import main
from efficient_rollout.certificate import Machine, certificate_path, read_certificate
from efficient_rollout.errors import UnsupportedDeviceError
from efficient_rollout.gpu_check import cli, start
from efficient_rollout.gpu_check.steps import STEPS, VARIABLES, command, measured_path

HERE = Machine(gpu="NVIDIA A", capability="9.0", driver="580.1", packages={"vllm": "0.31.0"}, sources="abc")


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Names of steps that fail; the others pass."""
    names = set()

    def fake(step, folder, shapes):
        script = "raise SystemExit('gpu-check: it FAILED: expected 1, found 2')"
        if step.name not in names:
            script = 'import sys; open(sys.argv[1], \'w\').write(\'{"count": 3, "by_case": {"a": 1}}\')'
        return [sys.executable, "-S", "-c", script, str(measured_path(folder, step.name))]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "command", fake)
    monkeypatch.setattr(start, "machine_to_check", lambda: HERE)
    return names


def check(tmp_path, *options):
    code = main(["gpu-check", "--out", str(tmp_path / "out"), *options])
    return code, json.loads((tmp_path / "out" / "gpu_check.json").read_text())


def test_all_steps_pass(failing, tmp_path, capsys):
    code, document = check(tmp_path)
    said = capsys.readouterr().out
    assert code == 0
    assert document["outcome"] == "passed"
    assert document["machine"] == HERE.model_dump()
    assert [step["name"] for step in document["steps"]] == [step.name for step in STEPS]
    assert document["steps"][0]["measured"] == {"count": 3, "by_case": {"a": 1}}
    assert {"time", "commit", "packages", "hardware"} <= document["provenance"].keys()
    certificate = read_certificate(certificate_path(HERE))
    assert (certificate.outcome, certificate.steps[-1]) == ("passed", "sleep")
    assert "operators     passed" in said
    assert "count 3, by case" in said
    assert f"certificate (passed): {certificate_path(HERE)}" in said


def test_a_failure_is_named_written_and_certified(failing, tmp_path, capsys):
    failing.add("products")
    code, document = check(tmp_path)
    said = capsys.readouterr().out
    assert code == 1
    assert [step["passed"] for step in document["steps"]] == [True, True, False]
    assert document["steps"][-1]["last_lines"] == ["gpu-check: it FAILED: expected 1, found 2"]
    assert "step products FAILED: its process ended with exit code 1" in said
    assert "| gpu-check: it FAILED: expected 1, found 2" in said
    certificate = read_certificate(certificate_path(HERE))
    assert (certificate.outcome, certificate.failed_step) == ("failed", "products")
    failing.clear()
    assert check(tmp_path)[0] == 0
    assert read_certificate(certificate_path(HERE)).outcome == "passed"


def test_what_only_measures_costs_no_certificate(failing, tmp_path):
    failing.add("latency")
    code, document = check(tmp_path)
    assert (code, document["outcome"]) == (1, "failed")
    assert read_certificate(certificate_path(HERE)).outcome == "passed"
    assert check(tmp_path, "--skip-measuring")[0] == 0


def test_what_cannot_be_checked_is_refused(monkeypatch, tmp_path, capsys):
    def nothing():
        raise UnsupportedDeviceError("vLLM finds no NVIDIA GPU here")

    monkeypatch.setattr(start, "machine_to_check", nothing)
    assert main(["gpu-check", "--out", str(tmp_path)]) == 2
    assert "gpu-check: error: vLLM finds no NVIDIA GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("shapes", ["", "7b,70b"])
def test_unknown_shapes_are_refused(shapes, tmp_path, capsys):
    assert main(["gpu-check", "--out", str(tmp_path), "--shapes", shapes]) == 2
    assert "7b, 8b, qwen3-8b, 14b" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "kept"), [(None, "0"), ("5,3", "5"), ("GPU-8932", "GPU-8932"), ("", "")])
def test_a_step_sees_one_gpu(given, kept, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert f"CUDA_VISIBLE_DEVICES={kept}" in command(STEPS[0], tmp_path, ())


def test_a_step_s_process_gets_variables_of_its_own(tmp_path):
    made = command(STEPS[1], tmp_path, ("7b", "8b"))
    assert made[:2] == ["env", "VLLM_ENABLE_V1_MULTIPROCESSING=0"]
    assert made[-4:] == ["kernels", "efficient_rollout.gpu_check.kernels:check_kernels", str(tmp_path), "7b,8b"]
    assert all(f"{name}={value}" in made for name, value in VARIABLES.items())
    assert command(STEPS[-1], tmp_path, ())[1] == "VLLM_ENABLE_V1_MULTIPROCESSING=1"


def test_a_quick_check_certifies_and_the_rest_goes_on_behind_it(failing, tmp_path, capsys):
    code, document = check(tmp_path, "--quick")
    assert code == 0
    assert read_certificate(certificate_path(HERE)).steps == ("operators", "kernels", "products", "quick")
    assert "8 minutes at most" in capsys.readouterr().out
    code, document = check(tmp_path, "--skip-measuring")
    again = [step["name"] for step in document["steps"] if not step["in_an_earlier_run"]]
    assert again == ["same-samples", "graphs", "distribution", "faults", "sync", "sleep"]
    assert read_certificate(certificate_path(HERE)).steps[-1] == "sleep"


def test_kernels_alone_certify_nothing(failing, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "machine_of_torch", lambda: HERE)
    assert main(["gpu-check", "--out", str(tmp_path / "out"), "--kernels"]) == 0
    document = json.loads((tmp_path / "out" / "kernels" / "gpu_check.json").read_text())
    assert [step["name"] for step in document["steps"]] == ["kernels", "requantizing", "sampling"]
    assert not certificate_path(HERE).exists()
