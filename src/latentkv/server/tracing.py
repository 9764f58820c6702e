"""OpenTelemetry traces where that is installed (the extra `otel`): a span for each choice, from arrival to its end.

Where spans go is OpenTelemetry's own business: the OTEL_* variables of its SDK. Without an endpoint in them nothing is
imported and nothing is traced. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from latentkv.engine.output import EngineStats, Output
from latentkv.server.engine_thread import Job

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Makes a span of each job; told by the engine's thread. Span names and attributes follow OpenTelemetry's GenAI."""

    def __init__(self, tracer: Tracer, *, model: str) -> None:
        self._tracer = tracer
        self._model = model

    def stepped(self, before: EngineStats, after: EngineStats) -> None:
        """Nothing to take note of."""

    def produced(self, job: Job, output: Output, now: float) -> None:
        """With the last output: the span, with the ends of queueing and prefill as events."""
        if not output.finished or output.timings is None:
            return
        offset = time.time() - now
        span = self._begin(job, offset)
        queued = job.submitted + output.timings.queued_ms / 1e3
        first = job.first_token if job.first_token is not None else now
        span.add_event("prefill", timestamp=_nanoseconds(queued + offset))
        span.add_event("decode", timestamp=_nanoseconds(first + offset))
        span.set_attribute("gen_ai.usage.output_tokens", job.output_tokens + len(output.token_ids))
        span.set_attribute("gen_ai.response.finish_reasons", [str(output.finish_reason)])
        span.set_attribute("latentkv.cached_tokens", output.reused_tokens)
        span.end(_nanoseconds(now + offset))

    def ended(self, job: Job, reason: str) -> None:
        """A span of what was cancelled or failed."""
        now = time.perf_counter()
        offset = time.time() - now
        span = self._begin(job, offset)
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
        span.set_attribute("gen_ai.usage.output_tokens", job.output_tokens)
        span.end(_nanoseconds(now + offset))

    def _begin(self, job: Job, offset: float) -> Span:
        span = self._tracer.start_span("generate", start_time=_nanoseconds(job.submitted + offset))
        span.set_attribute("gen_ai.operation.name", "text_completion")
        span.set_attribute("gen_ai.request.model", self._model)
        span.set_attribute("gen_ai.usage.input_tokens", len(job.prompt_token_ids))
        span.set_attribute("latentkv.request_id", job.id)
        return span


def from_environment(*, model: str) -> Tracing | None:
    """Tracing to where the OTEL_* variables say; None where they name no endpoint or the extra is not installed."""
    wanted = any(os.environ.get(name) for name in ENDPOINTS)
    if not wanted or find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "latentkv")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider.get_tracer("latentkv"), model=model)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
