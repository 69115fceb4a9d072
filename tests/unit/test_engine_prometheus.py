"""The text of `/metrics`, and who gets it; tests/integration/test_metrics_endpoint.py has the real server."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from efficient_rollout.config import CONFIG_KEY
from efficient_rollout.engine import prometheus
from efficient_rollout.engine.prometheus import MetricsMiddleware, exposition
from efficient_rollout.metrics.names import all_exported
from efficient_rollout.metrics.rollout_stats import RolloutStats

STOCK = b"# TYPE vllm:x gauge\nvllm:x 1.0\n"


def stats(**changes: Any) -> RolloutStats:
    counts = {"num_engines": 1, "num_ticks": 7, "ticks_by_reason": {"always": 5, "idle": 2}, "draft_seconds": 0.25}
    return RolloutStats(**{**counts, **changes})


def values(text: bytes) -> dict[tuple[str, ...], float]:
    found = {}
    for one in (one for family in text_string_to_metric_families(text.decode()) for one in family.samples):
        labels = dict(one.labels)
        found[one.name, labels.pop("model_name"), labels.pop("engine"), *labels.values()] = one.value
    return found


def test_every_engine_has_a_label_of_its_own():
    found = values(
        exposition(
            "nano", {0: stats(drafted_per_position=[4, 3]), 3: stats(draft_seconds=0.5, packed_weight_share=0.75)}
        )
    )
    assert found["efficient_rollout_ticks_total", "nano", "0", "always"] == 5
    assert found["efficient_rollout_draft_seconds_total", "nano", "0"] == 0.25
    assert found["efficient_rollout_draft_tokens_total", "nano", "0", "1"] == 3, "positions count from 0, as vLLM's"
    assert found["efficient_rollout_draft_seconds_total", "nano", "3"] == 0.5
    assert found["efficient_rollout_packed_weight_ratio", "nano", "3"] == 0.75
    assert ("efficient_rollout_packed_weight_ratio", "nano", "0") not in found, "what is not known is no zero"


def test_what_is_exported_is_named_as_prometheus_asks():
    families = {one.name: one for one in text_string_to_metric_families(exposition("nano", {0: stats()}).decode())}
    for sample, one in all_exported().items():
        assert (families[one.name].type, families[one.name].documentation) == (one.kind, one.meaning)
        assert sample.endswith("_total") == (one.kind == "counter")
        assert one.meaning.endswith(".")
        assert one.name.endswith("_seconds") == (one.unit == "s"), "base units, said in the name"


class Server:
    """What the middleware reads of an `AsyncLLM`."""

    def __init__(self, config: dict[str, Any]) -> None:
        model_config = SimpleNamespace(served_model_name="nano")
        self.vllm_config = SimpleNamespace(additional_config=config, model_config=model_config)


OURS = Server({CONFIG_KEY: {}})


def ask(
    server: Server | None, *, path: str = "/metrics", kind: str = "http", root_path: str = "", status: int = 200
) -> tuple[dict[bytes, bytes], bytes]:
    """Headers of the request as vLLM saw it, and the body that went out; the length must be the body's."""
    seen, sent = {}, []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        seen.update(scope["headers"])
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(STOCK))]}
        )
        await send({"type": "http.response.body", "body": STOCK[:9], "more_body": True})
        await send({"type": "http.response.body", "body": STOCK[9:]})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind, "path": root_path + path, "root_path": root_path,
        "headers": [(b"accept-encoding", b"gzip"), (b"accept", b"application/openmetrics-text"), (b"host", b"here")],
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=server)),
    }  # fmt: skip
    asyncio.run(MetricsMiddleware(app)(scope, None, send))
    body = b"".join(part["body"] for part in sent[1:])
    assert sent[0]["headers"] == [(b"content-length", b"%d" % len(body))]
    return seen, body


@pytest.fixture
def engines(monkeypatch) -> dict[int, RolloutStats]:
    """What the engines behind a server answer."""
    answer = {0: stats()}

    async def totals(_server: Any) -> dict[int, RolloutStats]:
        return answer

    monkeypatch.setattr(prometheus, "rollout_totals_by_engine", totals)
    return answer


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_the_engine_s_numbers_follow_vllm_s_own(path, root_path, engines):
    seen, body = ask(OURS, path=path, root_path=root_path)
    assert body == STOCK + exposition("nano", engines)
    assert set(seen) == {b"host"}, "no other format, and nothing packed"


@pytest.mark.parametrize(
    ("server", "path"),
    [
        (OURS, "/health"),
        (OURS, "/v1/metrics"),
        (None, "/metrics"),
        (Server({}), "/metrics"),
        (Server({CONFIG_KEY: {"enabled": False}}), "/metrics"),
    ],
)
def test_every_other_request_passes_untouched(server, path, engines):
    seen, body = ask(server, path=path)
    assert body == STOCK
    assert set(seen) == {b"host", b"accept", b"accept-encoding"}


def test_an_answer_that_is_no_list_of_metrics_stays_as_it_is(engines):
    assert ask(OURS, status=401)[1] == STOCK


def test_an_engine_that_does_not_answer_leaves_vllm_s_own(monkeypatch, caplog):
    async def never(_server: Any) -> dict[int, RolloutStats]:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(prometheus, "rollout_totals_by_engine", never)
    monkeypatch.setattr(prometheus, "_PATIENCE_SECONDS", 0.01)
    assert ask(OURS)[1] == STOCK
    assert "did not answer" in caplog.text
