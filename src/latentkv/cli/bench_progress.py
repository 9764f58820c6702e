"""Progress of a measurement: what runs now, and how much is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def reporting(*, lines: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """A function to report (done, in all, what) to: a bar on stderr; without a terminal, lines if `lines`."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: click.echo(f"[{done}/{total}] {what}", err=True) if lines and what else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
