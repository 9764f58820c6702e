"""What happened in the last seconds, for the status page: speeds and latencies over a sliding window.

Fed by the engine's thread, read by the event loop. Knows nothing of HTTP or Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from latentkv.engine.output import EngineStats, Output
from latentkv.server.engine_thread import Job

SPEED_WINDOW_S = 10.0
LATENCIES_KEPT = 1000
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class _Step:
    ended: float
    prefill_tokens: int
    decode_tokens: int
    seconds: float


class Recent:
    """A sliding window over one engine's work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: deque[_Step] = deque()
        self._latencies: dict[str, deque[float]] = {
            name: deque(maxlen=LATENCIES_KEPT) for name in ("time_to_first_token", "inter_token", "request")
        }

    def stepped(self, before: EngineStats, after: EngineStats) -> None:
        """A step was computed (engine's thread)."""
        step = _Step(
            time.perf_counter(),
            after.prefill_tokens - before.prefill_tokens,
            after.decode_tokens - before.decode_tokens,
            after.prefill_seconds + after.decode_seconds - before.prefill_seconds - before.decode_seconds,
        )
        with self._lock:
            self._steps.append(step)
            self._forget(step.ended)

    def produced(self, job: Job, output: Output, now: float) -> None:
        """A job got an output (engine's thread)."""
        with self._lock:
            if job.last_token is None:
                self._latencies["time_to_first_token"].append(now - job.submitted)
            else:
                gap = (now - job.last_token) / max(1, len(output.token_ids))
                self._latencies["inter_token"].extend([gap] * len(output.token_ids))
            if output.finished:
                self._latencies["request"].append(now - job.submitted)

    def ended(self, job: Job, reason: str) -> None:
        """Nothing to take note of."""

    def speeds(self) -> dict[str, float]:
        """Tokens and steps per second, and the share of time spent in steps, over the window."""
        with self._lock:
            self._forget(time.perf_counter())
            steps = tuple(self._steps)
        return {
            "window_seconds": SPEED_WINDOW_S,
            "prefill_tokens_per_second": sum(step.prefill_tokens for step in steps) / SPEED_WINDOW_S,
            "decode_tokens_per_second": sum(step.decode_tokens for step in steps) / SPEED_WINDOW_S,
            "steps_per_second": len(steps) / SPEED_WINDOW_S,
            "busy_share": min(1.0, sum(step.seconds for step in steps) / SPEED_WINDOW_S),
        }

    def latencies_ms(self) -> dict[str, dict[str, float | None]]:
        """Quantiles of the newest latencies, by kind; None while there are none."""
        with self._lock:
            kept = {name: sorted(values) for name, values in self._latencies.items()}
        return {
            name: {f"p{round(100 * share)}": _quantile_ms(values, share) for share in QUANTILES}
            for name, values in kept.items()
        }

    def _forget(self, now: float) -> None:
        while self._steps and self._steps[0].ended < now - SPEED_WINDOW_S:
            self._steps.popleft()


def _quantile_ms(rising: Sequence[float], share: float) -> float | None:
    return round(1e3 * rising[min(len(rising) - 1, int(share * len(rising)))], 3) if rising else None
