"""Draws latency and throughput over load. Imports matplotlib, which the extra `plot` installs, when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("ttft_ms", "time to first token, ms"),
    ("itl_ms", "inter-token latency, ms"),
)


def draw_loads(loads: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Write a picture of the records that `latentkv bench serve --json` prints, in order of load; the kind by suffix.

    One load makes points, several make lines: output tokens per second, and three percentiles of both latencies.
    """
    from matplotlib.figure import Figure

    closed = all(load["concurrency"] is not None for load in loads)
    name = "concurrency" if closed else "rate"
    rows = sorted((load for load in loads if load[name] is not None), key=lambda load: float(load[name]))
    x = [row[name] for row in rows]
    figure = Figure(figsize=(12, 4), layout="constrained")
    throughput, *latencies = figure.subplots(1, 1 + len(PANELS))
    throughput.plot(x, [row["output_tokens_per_s"] for row in rows], "o-", label="output")
    throughput.plot(x, [row["total_tokens_per_s"] for row in rows], "s--", label="output and prompts")
    throughput.set_ylabel("tokens per second")
    for axes, (key, label) in zip(latencies, PANELS, strict=True):
        for percentile, style in (("p50", "o-"), ("p90", "s--"), ("p99", "^:")):
            axes.plot(x, [row[key][percentile] for row in rows], style, label=percentile)
        axes.set_ylabel(label)
    for axes in (throughput, *latencies):
        axes.set_xlabel("requests at once" if closed else "requests per second")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
