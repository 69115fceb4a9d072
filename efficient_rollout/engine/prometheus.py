"""Our counters on the `/metrics` of vLLM's own server, through its option for middleware.

vLLM's other door, the entry points `vllm.stat_logger_plugins`, would make every server on the machine collect
statistics, also those that asked for none (`disable_log_stats`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from efficient_rollout.config import CONFIG_KEY
from efficient_rollout.engine.record import settings_of
from efficient_rollout.engine.statistics import rollout_totals_by_engine
from efficient_rollout.metrics.names import all_exported
from efficient_rollout.metrics.rollout_stats import RolloutStats

logger = logging.getLogger(__name__)

MIDDLEWARE = "efficient_rollout.engine.prometheus.MetricsMiddleware"
_PATH = "/metrics"
# What chooses another format or packs the answer, so that nothing could be added at its end.
_NEGOTIATION = (b"accept", b"accept-encoding")
# An engine answers between two ticks, but not inside a weight sync. Prometheus itself waits for 10 s by default.
_PATIENCE_SECONDS = 5.0

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class MetricsMiddleware:
    """Adds what the engines count to the answer of `/metrics` of vLLM's app; other requests pass untouched.

    Engines are asked when somebody looks, and not otherwise. Where they are not self-drafting, the answer stays vLLM's
    own; where they do not answer in time, too, with a warning in the log.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        server = _self_drafting_server(scope)
        if server is None:
            await self._app(scope, receive, send)
            return
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        headers = [header for header in scope["headers"] if header[0].lower() not in _NEGOTIATION]
        await self._app({**scope, "headers": headers}, receive, keep)
        start, *parts = sent
        body = b"".join(part.get("body", b"") for part in parts)
        if start["status"] == 200:
            body += await _exposition(server)
        headers = [header for header in start["headers"] if header[0].lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


def _families(model_name: str, engines: Mapping[int, RolloutStats]) -> Iterator[Metric]:
    """Yield every exported family, with a value of each engine that has one."""
    for exported in all_exported().values():
        make = CounterMetricFamily if exported.kind == "counter" else GaugeMetricFamily
        # The first two are vLLM's own labels.
        labels = ["model_name", "engine", *([exported.label] if exported.label else [])]
        family = make(exported.name, exported.meaning, labels=labels)
        for engine, stats in engines.items():
            for value_label, value in exported.values(stats).items():
                values = [model_name, str(engine), *([value_label] if exported.label else [])]
                family.add_metric(values, value)
        yield family


def exposition(model_name: str, engines: Mapping[int, RolloutStats]) -> bytes:
    """Return the text of every family, in prometheus_client's own format.

    Args:
        model_name: As the server serves it.
        engines: Their counts since they started, by vLLM's numbers.
    """
    return generate_latest(SimpleNamespace(collect=lambda: _families(model_name, engines)))


async def _exposition(server: Any) -> bytes:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            totals = await rollout_totals_by_engine(server)
    except TimeoutError:
        logger.warning("the engine did not answer within %.0f s: /metrics is without its counters", _PATIENCE_SECONDS)
        return b""
    return exposition(server.vllm_config.model_config.served_model_name, totals)


def _self_drafting_server(scope: Mapping[str, Any]) -> Any:
    """Return the `AsyncLLM` of a request for the metrics of engines that draft for themselves; None for any other."""
    if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") != _PATH:
        return None
    server = getattr(scope["app"].state, "engine_client", None)
    if server is None or CONFIG_KEY not in server.vllm_config.additional_config:
        return None
    return server if settings_of(server.vllm_config).enabled else None
