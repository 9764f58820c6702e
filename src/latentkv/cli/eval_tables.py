"""The table that `latentkv eval cache` shows to people. Imports rich, so it is imported only when it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDEST_COLUMNS = 110


def print_quality(records: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as `evaluate.cache_quality.as_records` makes them."""
    table = Table(box=box.SIMPLE)
    for heading in ("format", "B/token", "tokens", "perplexity", "KL from bf16, nats", "same top token", "needles"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for record in records:
        table.add_row(
            record["format"],
            f"{record['bytes_per_token']:,}",
            f"{record['tokens']:,}",
            _number(record["perplexity"], ".3f"),
            f"{_number(record['kl'], '.2e')} ± {_number(record['kl_error'], '.0e')}",
            _number(record["top1_agreement"], ".2%"),
            f"{record['needles_found']} of {record['needles']}" if record["needles"] else "-",
        )
    Console(width=WIDEST_COLUMNS, highlight=False, markup=False).print(table)


def _number(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)
