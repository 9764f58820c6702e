"""`latentkv eval`: what choices cost in quality, one subcommand each."""

from __future__ import annotations

import click

from latentkv.cli.eval_cache import cache


@click.group(short_help="Measure what a choice costs in quality.")
def eval() -> None:
    """Measure what a choice costs in quality, on a text."""


eval.add_command(cache)
