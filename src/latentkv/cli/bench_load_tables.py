"""The tables of `latentkv bench serve`. Imports rich, so it is imported only when they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDEST_COLUMNS = 118
LATENCIES = (
    ("ttft_ms", "time to first token"),
    ("itl_ms", "inter-token latency"),
    ("tpot_ms", "per token after the first"),
    ("e2e_ms", "whole request"),
)


def print_loads(record: Mapping[str, Any]) -> None:
    """Throughput, then percentiles of latency, a line for each load; errors and interruptions below."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    console.print(_throughput(record["loads"]))
    console.print(_latency(record["loads"]))
    for load in record["loads"]:
        for kind, times in load["errors"].items():
            console.print(f"{load['load']}: {times} x {kind}")
        if load["interrupted"]:
            console.print(f"{load['load']}: interrupted; requests that were not answered are left out")
    facts = {name: value for name, value in record.items() if name != "loads" and value is not None}
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))


def _throughput(loads: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, title="throughput, per second", title_justify="left")
    table.add_column("load")
    with_goodput = any(load["goodput_per_s"] is not None for load in loads)
    headings = ["seconds", "answered", "failed", "requests", "output tokens", "all tokens"]
    for heading in [*headings, *(["good requests", "good share"] if with_goodput else [])]:
        table.add_column(heading, justify="right")
    for load in loads:
        cells = [
            f"{load['seconds']:.1f}",
            str(load["completed"]),
            str(sum(load["errors"].values())),
            f"{load['requests_per_s']:.2f}",
            f"{load['output_tokens_per_s']:.1f}",
            _number(load["total_tokens_per_s"]),
        ]
        goodput = [f"{load['goodput_per_s']:.2f}", f"{load['good_share'] or 0:.0%}"] if with_goodput else []
        table.add_row(load["load"], *cells, *goodput)
    return table


def _latency(loads: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, title="latency, ms", title_justify="left")
    table.add_column("load")
    table.add_column("of")
    for heading in ("p50", "p90", "p99", "mean"):
        table.add_column(heading, justify="right")
    for load in loads:
        for row, (key, name) in enumerate(LATENCIES):
            spread = load[key]
            cells = [_number(spread[column]) for column in ("p50", "p90", "p99", "mean")]
            table.add_row(load["load"] if row == 0 else "", name, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
