"""What a worker says of its machine's certificate, and that looking for what can run starts no CUDA."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch

from efficient_rollout.certificate import Certificate, Machine, certificate_path
from efficient_rollout.config import DrafterSettings, Settings
from efficient_rollout.drafter.schemes import cuda_schemes
from efficient_rollout.drafter.stopwatch import Stopwatch
from efficient_rollout.engine.gpu import worker as gpu_worker
from efficient_rollout.engine.record import Health
from efficient_rollout.engine.worker import ReportingWorker
from efficient_rollout.errors import UnsupportedDeviceError
from efficient_rollout.metrics.rollout_stats import RolloutStats, Tally

HERE = Machine(gpu="NVIDIA H100", capability="9.0", driver="580.1", packages={"vllm": "0.31.0"}, sources="abc")


class Worker(ReportingWorker):
    """What reports in `GpuWorker`, without a GPU; it drafts."""

    rank = 0
    self_drafter = SimpleNamespace(links=None, stopwatch=Stopwatch(torch.device("cpu")))
    look_for_certificate = gpu_worker.GpuWorker.look_for_certificate

    def __init__(self):
        self.settings, self.health, self.tally = Settings(), Health(), Tally(num_engines=1)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """This machine is an H100, with a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_worker, "this_machine", lambda: HERE)


def certify(outcome):
    Certificate(
        machine=HERE, outcome=outcome, steps=(), failed_step="kernels", time="2026-11-27T00:00:00Z", commit=None
    ).write(certificate_path(HERE))


def test_without_one_an_engine_says_so_once_in_log_status_and_metrics(caplog):
    first, second = Worker(), Worker()
    second.rank = 1
    with caplog.at_level(logging.WARNING):
        for worker in (first, second):
            worker.look_for_certificate(Settings())
    assert len(caplog.records) == 1
    assert "without a certificate: drafting has not been checked on NVIDIA H100" in caplog.text
    assert "gpu-check" in first.plugin_status()["certificate_gap"]
    stats = [RolloutStats.from_dict(first.take_rollout_stats()) for _ in range(2)]
    assert RolloutStats.merge(stats).to_metrics()["efficient_rollout/uncertified"] == 1
    assert first.rollout_totals()["is_uncertified"] == 1


def test_with_one_it_says_nothing(caplog):
    certify("passed")
    worker = Worker()
    worker.look_for_certificate(Settings(gpu_certificate="required"))
    assert caplog.records == []
    assert worker.plugin_status()["certificate_gap"] is None
    assert worker.take_rollout_stats()["is_uncertified"] == 0


@pytest.mark.parametrize(("setting", "outcome"), [("required", None), ("required", "failed"), ("warn", "failed")])
def test_one_that_is_required_or_failed_refuses(setting, outcome):
    if outcome:
        certify(outcome)
    with pytest.raises(UnsupportedDeviceError, match="gpu-check"):
        Worker().look_for_certificate(Settings(gpu_certificate=setting))


def test_whether_a_scheme_can_run_is_known_without_cuda(monkeypatch):
    def started(*_):
        raise AssertionError("CUDA was started")

    for name in ("is_available", "get_device_capability", "get_device_properties", "current_device", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, started)
    operators = ("marlin_gemm", "cutlass_scaled_mm", "dynamic_scaled_int8_quant", "dynamic_per_token_scaled_fp8_quant")
    for name in operators:
        monkeypatch.setattr(torch.ops._C, name, None, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setitem(__import__("sys").modules, "triton", _Compiling)
    found = {name: scheme.missing() for name, scheme in cuda_schemes(DrafterSettings(), (10, 0)).items()}
    assert {name for name, missing in found.items() if missing is None} == {"int4", "fp8", "unquantized"}
    assert found["int8"] == "its kernel needs compute capability 7.5 to below 10.0, and this GPU has 10.0"


class _Compiling:
    """Triton, with a compiler."""

    class knobs:
        class runtime:
            interpret = False
