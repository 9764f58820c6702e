"""`latentkv bench attention` and `latentkv bench linear`: kernels against the machine's ceilings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from latentkv.cli.bench_progress import reporting
from latentkv.cli.options import with_options

if TYPE_CHECKING:
    from latentkv.bench.kernel_cases import Case, Options

KERNELS = (
    click.option("--isa", help="Instruction set.  [default: the best]"),
    click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: torch's own]"),
    click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="The median counts."),
    click.option("--only", default="", metavar="TEXT", help="Only cases whose name holds this."),
    click.option("--cpu-time", is_flag=True, help="One thread's own time, for a machine that others share."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
)


@click.command(short_help="Attention against the machine's ceilings.")
@with_options(KERNELS)
def attention(**options: Any) -> None:
    """Measure attention over DeepSeek's latents: decode, prefill in head form, and torch's own attention.

    Shares are of the fp32 multiply-add rate and of the reading rate of the same moment.
    """
    from latentkv.bench.attention import attention_cases

    _run(attention_cases, options)


@click.command(short_help="Linear maps against the machine's ceilings.")
@with_options(KERNELS)
def linear(**options: Any) -> None:
    """Measure linear maps of every weight format: few rows on weights beyond the caches, many rows, and torch's own.

    Shares are of the fp32 multiply-add rate and of the reading rate of the same moment.
    """
    from latentkv.bench.linear import linear_cases

    _run(linear_cases, options)


def _run(make: Callable[[Options], list[Case]], options: dict[str, Any]) -> None:
    import torch

    from latentkv.bench.kernel_cases import Options, measure_cases

    as_json, threads = options.pop("as_json"), options.pop("threads") or torch.get_num_threads()
    wish = Options(threads=threads, **options)
    with reporting(lines=False) as report:
        report(0, 1, "filling memory")
        record = measure_cases(make(wish), wish, report=report)
    if as_json:
        click.echo(json.dumps(record))
        return
    from latentkv.cli.bench_tables import print_kernels

    print_kernels(record)
