"""The tables that `latentkv bench` shows to people. Imports rich, so it is imported only when they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from latentkv.bench.model import Row, Speed
    from latentkv.bench.profile import Part

WIDEST_COLUMNS = 110


def print_speeds(rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Tokens per second of everybody, and ours over the fastest of the others."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    table = Table(box=box.SIMPLE, title="tokens per second, medians", title_justify="left")
    table.add_column("case")
    for speed in rows[0].speeds if rows else ():
        table.add_column(speed.engine, justify="right")
    compared = any(row.ratio is not None for row in rows)
    if compared:
        table.add_column("x fastest other", justify="right")
    for row in rows:
        cells = [row.case.name, *(_speed(speed) for speed in row.speeds)]
        table.add_row(*cells, *([f"{row.ratio:.1f}"] if row.ratio is not None else []))
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    if any(speed.runs == 1 for row in rows for speed in row.speeds):
        console.print("* measured once")


def print_parts(parts: Sequence[Part], facts: Mapping[str, Any]) -> None:
    """What a decode step consists of."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    table = Table(box=box.SIMPLE, title="a decode step at batch 1", title_justify="left")
    table.add_column("part")
    for heading in ("ms", "share", "calls"):
        table.add_column(heading, justify="right")
    for part in parts:
        calls = f"{part.calls:.0f}" if part.calls else ""
        table.add_row(part.name, f"{part.milliseconds:.3f}", f"{part.share:.1%}", calls)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))


def print_kernels(record: Mapping[str, Any]) -> None:
    """Rates and shares of the ceilings, and the ceilings."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    table = Table(box=box.SIMPLE)
    table.add_column("case")
    for heading in ("ms", "GFLOP/s", "of FMA", "best", "GB/s", "of reading", "best"):
        table.add_column(heading, justify="right")
    for row in record["cases"]:
        shares = [f"{row[name]:.0%}" for name in ("share_of_fma", "best_share_of_fma")]
        reading = [f"{row[name]:.0%}" for name in ("share_of_read", "best_share_of_read")]
        table.add_row(
            row["case"], f"{row['ms']:.3f}", f"{row['gflops']:.1f}", *shares, f"{row['read_gbs']:.2f}", *reading
        )
    console.print(table)
    for threads, best in record["ceilings"].items():
        console.print(f"ceilings, {threads} threads: {best['gflops']} GFLOP/s, {best['read_gbs']} GB/s read")
    console.print(f"instruction set {record['isa']}")


def _speed(speed: Speed) -> str:
    once = "*" if speed.runs == 1 else ""
    return f"{speed.median:,.1f}{once}" if speed.median >= 1 else f"{speed.median:,.3f}{once}"
