"""A span for each request, as an OpenTelemetry exporter gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from latentkv.server.tracing import Tracing, from_environment
from support.live_server import MODEL, loader, serving


def test_a_request_is_a_span(tool_model: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(loader(tool_model), observers=(Tracing(provider.get_tracer("test"), model=MODEL),)) as live:
        body = {"model": MODEL, "prompt": "one", "max_tokens": 5, "temperature": 0}
        live.post("/v1/completions", body, headers={"X-Request-Id": "mine"})
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.input_tokens"] == 3
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert str(span.attributes["latentkv.request_id"]).startswith("mine/")
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert [event.name for event in span.events] == ["prefill", "decode"]
    assert times == sorted(times)


def test_nothing_is_traced_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment(model=MODEL) is None
