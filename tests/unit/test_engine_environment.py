"""Variables that only vLLM reads are chosen for the user, and the user's own are left alone."""

import os

import pytest
import torch

from efficient_rollout.config import Settings
from efficient_rollout.engine import environment
from efficient_rollout.engine.environment import bind_workers, choose_runner, cores_of_first, with_cores_of_first
from efficient_rollout.errors import ConfigError, SchemeUnavailableError

CORES, RUNNER = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_USE_V2_MODEL_RUNNER"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(environment, "_chosen", {})
    for name in (CORES, RUNNER):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in (CORES, RUNNER):
        os.environ.pop(name, None)


@pytest.fixture
def machine(monkeypatch):
    """Pretends that this process may use these cores, on so many memory nodes."""

    def set_machine(cores, num_nodes=1):
        monkeypatch.setattr(environment, "cores_of_machine", lambda: (list(cores), num_nodes))

    return set_machine


@pytest.mark.parametrize(
    ("cores", "num_workers", "expected"),
    [
        (range(2), 2, "0|1"),
        (range(4), 2, "0|2"),
        (range(8), 2, "0,1,2|4,5,6"),
        (range(9), 3, "0,1|3,4|6,7"),
        ([0, 2, 4, 6], 4, "0|2|4|6"),
    ],
)
def test_workers_share_the_cores_alike_and_leave_one_each(machine, cores, num_workers, expected):
    machine(cores)
    bind_workers(num_workers)
    assert os.environ[CORES] == expected


@pytest.mark.parametrize(("num_workers", "num_nodes"), [(1, 1), (2, 2), (2, 4)])
def test_vllm_binds_where_it_can(machine, num_workers, num_nodes):
    machine(range(8), num_nodes)
    bind_workers(num_workers)
    assert CORES not in os.environ


def test_more_workers_than_cores_are_refused(machine):
    machine(range(2))
    with pytest.raises(ConfigError, match=r"3 workers .* need a core each, and this process may use 2"):
        bind_workers(3)
    with pytest.raises(ConfigError, match=r"is 0: both are 1 and up"):
        bind_workers(0)


def test_the_users_binding_is_kept_or_refused(machine, monkeypatch):
    machine(range(8))
    monkeypatch.setenv(CORES, "0-1|5")
    bind_workers(2)
    assert os.environ[CORES] == "0-1|5"
    with pytest.raises(ConfigError, match=r"binds 2 workers, and there are 1"):
        bind_workers(1)
    monkeypatch.setenv(CORES, "nobind")
    bind_workers(3)
    assert os.environ[CORES] == "nobind"


def test_a_second_engine_of_another_size_is_bound_anew(machine):
    machine(range(8))
    bind_workers(2)
    bind_workers(4)
    assert os.environ[CORES] == "0|2|4|6"
    bind_workers(1)
    assert CORES not in os.environ


def test_a_profile_is_measured_on_the_cores_of_one_engine(machine, monkeypatch):
    machine(range(4))
    assert cores_of_first(1) == "auto"
    assert with_cores_of_first(1) == dict(os.environ)
    monkeypatch.setenv(CORES, "0|1|2|3")
    assert cores_of_first(2) == "0|1"
    assert with_cores_of_first(2)[CORES] == "0|1"
    monkeypatch.setenv(CORES, "nobind")
    assert cores_of_first(2) == "nobind"


def test_the_runner_is_chosen_once_and_the_users_choice_is_kept(monkeypatch, caplog):
    with caplog.at_level("INFO"):
        choose_runner()
        choose_runner()
    assert os.environ[RUNNER] == "0"
    assert [record.message for record in caplog.records if record.name == environment.logger.name] == [
        "self-drafting engines run on vLLM's V1 model runner: VLLM_USE_V2_MODEL_RUNNER=0"
    ]
    monkeypatch.setenv(RUNNER, "1")
    choose_runner()
    assert os.environ[RUNNER] == "1"


def test_this_machines_cores_are_those_the_process_may_use():
    pytest.importorskip("vllm")
    cores, num_nodes = environment.cores_of_machine()
    assert set(cores) <= os.sched_getaffinity(0)
    assert num_nodes >= 1


@pytest.mark.parametrize(
    ("kernel", "dtype", "avx512", "missing", "expected"),
    [
        ("auto", torch.float32, False, None, True),
        ("auto", torch.float32, True, None, False),
        ("auto", torch.bfloat16, False, None, False),
        ("stock", torch.float32, False, None, False),
        ("native", torch.float32, True, None, True),
    ],
)
def test_native_products_are_used_where_they_are_faster_or_asked_for(
    monkeypatch, kernel, dtype, avx512, missing, expected
):
    monkeypatch.setattr(environment, "has_avx512", lambda: avx512)
    monkeypatch.setattr(environment, "native_missing", lambda: missing)
    assert environment.uses_native_products(Settings(verify_kernel=kernel), dtype) is expected


def test_native_products_that_cannot_be_had_are_said_and_never_replaced_in_silence(monkeypatch, caplog):
    monkeypatch.setattr(environment, "has_avx512", lambda: False)
    monkeypatch.setattr(environment, "native_missing", lambda: "no compiler")
    assert not environment.uses_native_products(Settings(), torch.float32)
    assert "no compiler" in caplog.text
    with pytest.raises(SchemeUnavailableError, match=r"no compiler.*verify_kernel=auto"):
        environment.uses_native_products(Settings(verify_kernel="native"), torch.float32)
    monkeypatch.setattr(environment, "native_missing", lambda: None)
    with pytest.raises(SchemeUnavailableError, match="bfloat16"):
        environment.uses_native_products(Settings(verify_kernel="native"), torch.bfloat16)
