"""What vLLM's server is started with, and what is refused before it is."""

import json
import socket
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from efficient_rollout.config import CONFIG_KEY, Settings
from efficient_rollout.engine.engine_args import CPU_WORKER, EXECUTOR, SCHEDULER
from efficient_rollout.engine.prometheus import MIDDLEWARE
from efficient_rollout.engine.server import main, server_arguments
from efficient_rollout.errors import ConfigError, EfficientRolloutError
from efficient_rollout.tasks.policy import ensure_policy

SETTINGS = Settings.parse({"controller": {"max_draft_tokens": 3}})


@pytest.fixture(scope="module")
def policy() -> Path:
    return ensure_policy("nano")


def arguments(policy: Path, *options: str, settings: Settings = SETTINGS) -> Namespace:
    return server_arguments(str(policy), settings, ["--dtype", "float32", "--port", "0", *options])


def test_it_is_what_engine_args_says_beside_the_users_own(policy):
    found = arguments(policy, "--additional-config", '{"mine": 1}', "--middleware", "my.Own", "--enforce-eager")
    assert (found.worker_cls, found.scheduler_cls) == (CPU_WORKER, SCHEDULER)
    assert (found.distributed_executor_backend, found.async_scheduling) == (EXECUTOR, False)
    assert found.speculative_config == {"method": "draft_model", "model": str(policy), "num_speculative_tokens": 3}
    assert found.additional_config == {"mine": 1, CONFIG_KEY: SETTINGS.to_dict()}
    assert found.middleware == ["my.Own", MIDDLEWARE]
    assert (found.model, found.host, found.enforce_eager) == (str(policy), "127.0.0.1", True)


def test_without_drafting_it_is_plain_vllm(policy):
    found = arguments(policy, "--host", "0.0.0.0", settings=Settings(enabled=False))
    assert found.worker_cls == CPU_WORKER
    assert (found.scheduler_cls, found.distributed_executor_backend, found.speculative_config) == (None, None, None)
    assert found.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--speculative-config", '{"method": "ngram"}'], "set speculative_config, which this package sets itself"),
        (["--scheduler-cls", "my.Own", "--async-scheduling"], "set scheduler_cls, async_scheduling"),
        (["--quantization", "awq"], "does not work in an engine with quantization=awq"),
        (["--pipeline-parallel-size", "2"], "pipeline_parallel_size=2: set it to 1"),
        (["--tensor-parallel-size", "3"], "does not divide the policy's"),
        (["--enable-auto-tool-choice"], "vLLM refuses its options: "),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--host", "no-such-host.invalid"], "cannot listen on no-such-host.invalid"),
    ],
)
def test_what_does_not_fit_is_refused(policy, options, told):
    with pytest.raises(EfficientRolloutError, match=told):
        arguments(policy, *options)


def test_a_taken_port_is_one_message_before_the_model_is_looked_for(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["/no/such/model", json.dumps(SETTINGS.to_dict()), "--port", str(port)]) == 2
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            server_arguments("/no/such/model", SETTINGS, ["--port", str(port)])
    (message,) = capsys.readouterr().err.splitlines()[-1:]
    assert message.startswith(f"efficient-rollout serve: error: cannot listen on 127.0.0.1, port {port}: ")


def test_a_missing_model_is_one_message(capsys):
    assert main(["/no/such/model", json.dumps(SETTINGS.to_dict()), "--port", "0"]) == 2
    assert "serve: error: no policy at /no/such/model" in capsys.readouterr().err
