"""What Prometheus reads about backends: failures, replacements, breakers, the shadow's comparisons, spare kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from latentkv.backends.breaker import BreakerState
from latentkv.backends.guard import Guard
from latentkv.backends.shadow import ERROR_BOUNDS, Histogram, Shadow
from latentkv.engine.runner import Model
from latentkv.models.model import Model as LoadedModel
from latentkv.server.metrics import Labels, Source

STATES: dict[BreakerState, int] = {"closed": 0, "half-open": 1, "open": 2, "off": 3}


class BackendCollector(Collector):
    """Reads a guard whenever /metrics is read."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        """All metrics of the guard and, where there is one, of its shadow."""
        state = self._guard.state()
        failures = CounterMetricFamily(
            "latentkv_backend_failures", "Steps in which a backend failed.", labels=("backend", "reason")
        )
        for pair, count in state.failures.items():
            failures.add_metric(pair, count)
        yield failures
        replaced = CounterMetricFamily(
            "latentkv_backend_replaced_steps", "Steps that another backend finished.", labels=("from", "to")
        )
        for pair, count in state.replaced.items():
            replaced.add_metric(pair, count)
        yield replaced
        help = "0 closed (in use), 1 half-open (one step is tried), 2 open (left alone), 3 switched off."
        breakers = GaugeMetricFamily("latentkv_backend_state", help, labels=("backend",))
        for name, breaker in state.breakers.items():
            breakers.add_metric((name,), STATES[breaker])
        yield breakers
        paths = CounterMetricFamily(
            "latentkv_attention_steps",
            "Steps by backend, with its instruction set, and form.",
            labels=("backend", "form"),
        )
        for path, count in state.paths.items():
            paths.add_metric(path.rpartition(":")[::2], count)
        yield paths
        yield CounterMetricFamily(
            "latentkv_attention_not_finite", "Layers for which no backend finds a finite result.", state.not_finite
        )
        if self._guard.shadow is not None:
            yield from _shadow(self._guard.shadow)


def kernel_fallbacks(model: Callable[[], Model | None]) -> Source:
    """Calls of native kernels that the references computed instead. model: None before it is loaded"""

    def read() -> Mapping[Labels, float]:
        loaded = model()
        # A copy first: the engine's thread counts on.
        counts = dict(loaded.execution.kernels.fallbacks) if isinstance(loaded, LoadedModel) else {}
        return {(op, reason): count for key, count in counts.items() for op, _, reason in [key.partition(": ")]}

    help = "Calls of native kernels that portable ones computed instead."
    return Source("counter", "kernel_fallbacks", help, ("op", "reason"), read)


def _shadow(shadow: Shadow) -> Iterator[Metric]:
    state = shadow.state()
    for name, help, count in (
        ("steps", "Steps computed on a second backend too.", state.steps),
        ("calls", "Layers compared.", state.calls),
        ("errors", "Layers that the shadow could not compute.", state.errors),
        ("mismatches", "Layers in which both backends disagree.", state.mismatches),
        ("dumps", "Disagreements written to files.", state.dumped),
    ):
        yield CounterMetricFamily(f"latentkv_shadow_{name}", help, count)
    for name, help, errors in (
        ("output", "Largest difference of an output, relative to the largest of its token and head.", state.out_error),
        ("lse", "Largest difference of an LSE.", state.lse_error),
    ):
        yield HistogramMetricFamily(
            f"latentkv_shadow_{name}_error", help, buckets=_buckets(errors), sum_value=errors.total
        )


def _buckets(errors: Histogram) -> list[tuple[str, float]]:
    """(upper bound, count up to it), as Prometheus wants them."""
    counted, buckets = 0, []
    for bound, count in zip((*map(str, ERROR_BOUNDS), "+Inf"), errors.counts, strict=True):
        counted += count
        buckets.append((bound, float(counted)))
    return buckets
