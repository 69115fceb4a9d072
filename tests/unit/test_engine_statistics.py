"""A rollout and its tail as spans, where vLLM has a tracer; with OpenTelemetry's own exporter in memory."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.tracing import otel

from efficient_rollout.engine.statistics import SegmentRecorder
from efficient_rollout.metrics.rollout_stats import RolloutStats

# 8 requests for 3 s, 2 for 1 s; seconds of drafting behind those of plain decoding.
TIMELINE = [[5.0, 8.0, 24.0, 3.0], [8.0, 9.0, 2.0, 0.0, 1.0]]


async def answer(*_: Any, **__: Any) -> list[dict[str, Any]]:
    return [RolloutStats(num_engines=1, num_generated_tokens=26, timelines={"0": TIMELINE}).to_dict()]


def test_a_rollout_and_its_tail_end_with_its_last_response(monkeypatch):
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(otel.trace, "get_tracer", provider.get_tracer)
    server = SimpleNamespace(engine_core=SimpleNamespace(core_engines=[0], _call_utility_async=answer))
    record = SegmentRecorder()
    asyncio.run(record.take(server))
    assert not spans.get_finished_spans(), "nothing was generated"
    record.request_came()
    record.response_went()
    (segment,) = asyncio.run(record.take(server))[0]
    rollout, tail = spans.get_finished_spans()
    assert (rollout.name, tail.name) == ("efficient_rollout.rollout", "efficient_rollout.tail")
    assert (rollout.start_time, rollout.end_time) == (
        int(segment["first_request_time"] * 1e9), int(segment["last_response_time"] * 1e9),
    )  # fmt: skip
    assert rollout.attributes["generated_tokens"] == 26
    assert (tail.end_time, tail.end_time - tail.start_time) == (rollout.end_time, pytest.approx(1e9, abs=1e3))
