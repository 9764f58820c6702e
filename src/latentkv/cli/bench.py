"""`latentkv bench`: measurements on this machine, one subcommand each."""

from __future__ import annotations

import click

from latentkv.cli.bench_kernels import attention, linear
from latentkv.cli.bench_model import model
from latentkv.cli.bench_serve import serve


@click.group(short_help="Measure speed on this machine.")
def bench() -> None:
    """Measure speed on this machine, in turns with what it is compared with."""


bench.add_command(attention)
bench.add_command(linear)
bench.add_command(model)
bench.add_command(serve)
