"""A span for each request, as an OpenTelemetry exporter gets it."""

from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
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


class Collector:
    """What an OTLP collector does first: takes what is posted to /v1/traces, and reads it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    request = ExportTraceServiceRequest.FromString(body)
                    for resource in request.resource_spans:
                        collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_spans_arrive_at_a_collector(tool_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        traced = from_environment(model=MODEL)
        assert traced is not None
        with serving(loader(tool_model), observers=(traced,)) as live:
            for prompt in ("one", "another"):
                body = {"model": MODEL, "prompt": prompt, "max_tokens": 5, "temperature": 0}
                assert live.post("/v1/completions", body).status_code == 200
        deadline = time.monotonic() + 60
        while len(collector.spans) < 2:
            assert time.monotonic() < deadline, "no spans arrived"
            time.sleep(0.02)
    tokens = [{one.key: one.value.int_value for one in span.attributes} for span in collector.spans]
    assert [one["gen_ai.usage.input_tokens"] for one in tokens] == [3, 7]
    assert {span.name for span in collector.spans} == {"generate"}
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in collector.spans)


def test_nothing_is_traced_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment(model=MODEL) is None
