"""The `latentkv` command: its global options and the list of subcommands, one file each."""

from __future__ import annotations

import click

import latentkv
from latentkv.cli.program import Program, RunOptions

COMMANDS = (
    "backends",
    "bench",
    "cache",
    "catalog",
    "chat",
    "claims",
    "convert",
    "doctor",
    "eval",
    "generate",
    "inspect",
    "plan",
    "quantize",
    "replay",
    "serve",
)


@click.group(
    cls=Program,
    homes={name: f"latentkv.cli.{name}" for name in COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(latentkv.__version__, prog_name="latentkv")
@click.option("--traceback", is_flag=True, help="Show where an error came from instead of one sentence.")
@click.pass_obj
def main(options: RunOptions | None, *, traceback: bool) -> None:
    """Run language models with Multi-head Latent Attention from their compressed KV cache."""
    if options is not None:
        options.traceback = traceback
