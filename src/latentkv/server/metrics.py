"""What Prometheus reads from /metrics. Histograms are fed by the engine's thread, counts are read from its statistics.

Other parts add their own numbers with `add_source`; nothing here knows them. No registry is shared between servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from latentkv.engine.output import EngineStats, Output
from latentkv.server.engine_thread import Job

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TOKEN_SECONDS = (0.0025, *_SECONDS[:11])

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Counts or gauges that live elsewhere and are read when /metrics is.

    name: without the prefix `latentkv_` and, for counters, without `_total`
    read: one number for each tuple of label values; called in the server's event loop, has to be quick
    """

    kind: Literal["counter", "gauge"]
    name: str
    help: str
    labels: Labels
    read: Callable[[], Mapping[Labels, float]]


class Metrics:
    """All metrics of one server. `registry` takes further collectors of prometheus_client."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sources = _Sources()
        self.registry.register(self._sources)

        def seconds(name: str, help: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"latentkv_{name}", help, buckets=buckets, registry=self.registry)

        self._first_token = seconds("time_to_first_token_seconds", "From arrival to the first token.")
        self._next_token = seconds("inter_token_latency_seconds", "Between two tokens of a request.", _TOKEN_SECONDS)
        self._whole = seconds("e2e_request_latency_seconds", "From arrival to the last token.")
        self._queued = seconds("request_queue_time_seconds", "From arrival to the first step.")
        self._step = seconds("step_seconds", "One step of the engine.", _TOKEN_SECONDS)
        self._batch = Histogram("latentkv_batch_tokens", "Tokens in a step.", buckets=_TOKENS, registry=self.registry)
        self._requests = self._counter("requests", "Choices that ended, by why.", ("finish_reason",))
        self._http = self._counter("http_requests", "Answers to HTTP requests.", ("path", "status"))
        self._info = Gauge("latentkv_model_info", "The model.", ("model", "format", "geometry"), registry=self.registry)

    def stepped(self, before: EngineStats, after: EngineStats) -> None:
        """A step was computed (engine's thread)."""
        tokens = after.prefill_tokens + after.decode_tokens - before.prefill_tokens - before.decode_tokens
        if tokens:
            self._batch.observe(tokens)
            seconds = after.prefill_seconds + after.decode_seconds - before.prefill_seconds - before.decode_seconds
            self._step.observe(seconds)

    def produced(self, job: Job, output: Output, now: float) -> None:
        """A job got an output (engine's thread)."""
        if job.first_token is None:
            self._first_token.observe(now - job.submitted)
        elif job.last_token is not None:
            # A step may give several tokens: each took its share of the time.
            for _ in output.token_ids:
                self._next_token.observe((now - job.last_token) / len(output.token_ids))
        if output.finish_reason is not None:
            self._requests.labels(output.finish_reason).inc()
            self._whole.observe(now - job.submitted)
            if output.timings is not None:
                self._queued.observe(output.timings.queued_ms / 1e3)

    def ended(self, job: Job, reason: str) -> None:
        """A job ended without a last output (engine's thread)."""
        del job
        self._requests.labels(reason).inc()

    def answered(self, path: str, status: int) -> None:
        """An HTTP request was answered; `path` is a route's pattern, so that there are few of them."""
        self._http.labels(path, str(status)).inc()

    def describe_model(self, *, model: str, format: str, geometry: str) -> None:
        """Say once which model this is."""
        self._info.labels(model, format, geometry).set(1)

    def add_source(self, source: Source) -> None:
        """Read these numbers too from now on."""
        self._sources.add(source)

    def watch_engine(self, stats: Callable[[], EngineStats | None]) -> None:
        """Read the engine's own counts from `stats`."""
        for kind, name, help, labels, read in _ENGINE:
            self.add_source(Source(kind, name, help, labels, _reader(stats, read)))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, labels: Labels) -> Counter:
        return Counter(f"latentkv_{name}", help, labels, registry=self.registry)


class _Sources(Collector):
    """Sources as a collector."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        self._sources.append(source)

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            family = CounterMetricFamily if source.kind == "counter" else GaugeMetricFamily
            metric = family(f"latentkv_{source.name}", source.help, labels=source.labels)
            for values, number in source.read().items():
                metric.add_metric(values, number)
            yield metric


def _reader(
    stats: Callable[[], EngineStats | None], read: Callable[[EngineStats], Mapping[Labels, float]]
) -> Callable[[], Mapping[Labels, float]]:
    def numbers() -> Mapping[Labels, float]:
        now = stats()
        return read(now) if now is not None else {}

    return numbers


_Engine = tuple[Literal["counter", "gauge"], str, str, Labels, Callable[[EngineStats], Mapping[Labels, float]]]
_ENGINE: tuple[_Engine, ...] = (
    ("gauge", "num_requests_waiting", "Choices in the engine's queue.", (), lambda s: {(): s.waiting}),
    ("gauge", "num_requests_running", "Choices being computed.", (), lambda s: {(): s.running}),
    ("counter", "preemptions", "Times a request gave its pages back.", (), lambda s: {(): s.preemptions}),
    ("counter", "prefix_cache_hits", "Prompt tokens found.", (), lambda s: {(): s.prefix_hit_tokens}),
    ("counter", "prompt_tokens", "Prompt tokens computed.", (), lambda s: {(): s.prefill_tokens}),
    ("counter", "generation_tokens", "Tokens computed while decoding.", (), lambda s: {(): s.decode_tokens}),
    (
        "gauge",
        "pages",
        "Pages of the cache.",
        ("state",),
        lambda s: {("free",): s.free_pages, ("held",): s.held_pages, ("cached",): s.cached_pages},
    ),
    (
        "gauge",
        "cache_bytes",
        "Bytes of the cache.",
        ("tier",),
        lambda s: {("device",): s.cache_bytes, ("host",): s.host_bytes, ("disk",): s.disk_bytes},
    ),
    ("counter", "swapped_out_pages", "Pages saved when they left the cache.", (), lambda s: {(): s.swapped_out_pages}),
    ("counter", "swapped_in_pages", "Pages that came back from a tier.", (), lambda s: {(): s.swapped_in_pages}),
    ("counter", "checksum_failures", "Pages found damaged in a file.", (), lambda s: {(): s.checksum_failures}),
    ("counter", "restored_tokens", "Of preempted requests, found again.", (), lambda s: {(): s.restored_tokens}),
    ("counter", "speculative_proposed_tokens", "Guesses that were computed.", (), lambda s: {(): s.proposed_tokens}),
    ("counter", "speculative_accepted_tokens", "Guesses that were right.", (), lambda s: {(): s.accepted_tokens}),
    ("counter", "recomputed_tokens", "Of preempted requests, done again.", (), lambda s: {(): s.recomputed_tokens}),
    ("counter", "prefix_cache_queries", "Prompt tokens looked up.", (), lambda s: {(): s.prefix_queries_tokens}),
)
