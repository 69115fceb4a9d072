"""What a client of `efficient-rollout serve` reads is what it reads from stock vLLM's own server."""

import os
import signal
from typing import Any

import psutil
import pytest
from job_support import is_alive
from server_support import MODEL, serving, streamed

from efficient_rollout.cleanup import descendants
from efficient_rollout.tasks.policy import ensure_policy

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROMPTS = ["1+2+3=", "12+7+9+30=", "4+4="]
LONG = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "max_tokens": 60},
    "seeds": {"temperature": 1.0, "seed": 11, **LONG},
    "several": {"temperature": 1.0, "seed": 5, "n": 4, **LONG},
    "stop": {"temperature": 1.0, "seed": 7, "stop": ["7", "="], **LONG},
    "penalties": {"temperature": 0.8, "seed": 3, "presence_penalty": 0.7, **LONG},
    "text-completion": {"temperature": 0.0, "max_tokens": 8, "echo": True},
}
ROUNDING = 2e-4


def answers(server: Any) -> dict[str, Any]:
    """Everything that a client is told, streamed and at once."""
    client, found = server.client(), {}
    for name, given in CASES.items():
        found[name] = [streamed(client, prompt=prompt, **given) for prompt in PROMPTS]
    found["logprobs"] = []
    for prompt in PROMPTS:
        (choice,) = client.completions.create(
            model=MODEL, prompt=prompt, temperature=1.0, seed=2, logprobs=2, max_tokens=40
        ).choices
        found["logprobs"].append((choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.text))
    return found


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> dict[str, Any]:
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(ensure_policy("nano")), "--host", "127.0.0.1"]
    with serving(module, tmp_path_factory.mktemp("stock") / "log") as server:
        return answers(server)


@pytest.fixture(scope="module")
def ours(stock, tmp_path_factory) -> dict[str, Any]:
    command = ["-m", "efficient_rollout", "serve", str(ensure_policy("nano")), "controller.rule=always", "--"]
    with serving(command, tmp_path_factory.mktemp("ours") / "log") as server:
        found = answers(server)
        started = descendants(server.process.pid)
        (engine,) = (pid for pid in started if "EngineCore" in psutil.Process(pid).name())
        os.kill(engine, signal.SIGKILL)
        found["end"] = server.process.wait(timeout=120), server.log.read_text(), started
        return found


@pytest.mark.parametrize("case", CASES)
def test_streamed_text_is_that_of_stock(ours, stock, case):
    assert ours[case] == stock[case]
    assert all(text for responses in stock[case] for text, _ in responses) or case == "stop"


def test_a_server_whose_engine_died_ends_and_says_so(ours):
    code, log, started = ours["end"]
    assert code == 1
    assert "efficient-rollout serve: error: the server has ended by itself" in log
    assert not any(map(is_alive, started))


def test_log_probabilities_are_those_of_stock(ours, stock):
    for (tokens, logprobs, text), (expected, expected_logprobs, expected_text) in zip(
        ours["logprobs"], stock["logprobs"], strict=True
    ):
        assert (tokens, text) == (expected, expected_text)
        assert logprobs == pytest.approx(expected_logprobs, abs=ROUNDING)
