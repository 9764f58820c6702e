"""The `latentkv` command: its global options and the list of subcommands, one file each."""

from __future__ import annotations

import click

import latentkv
from latentkv.cli.bench import bench
from latentkv.cli.chat import chat
from latentkv.cli.convert import convert
from latentkv.cli.doctor import doctor
from latentkv.cli.generate import generate
from latentkv.cli.inspect import inspect
from latentkv.cli.program import Program, RunOptions
from latentkv.cli.quantize import quantize


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(latentkv.__version__, prog_name="latentkv")
@click.option("--traceback", is_flag=True, help="Show where an error came from instead of one sentence.")
@click.pass_obj
def main(options: RunOptions | None, *, traceback: bool) -> None:
    """Run language models with Multi-head Latent Attention from their compressed KV cache."""
    if options is not None:
        options.traceback = traceback


main.add_command(bench)
main.add_command(chat)
main.add_command(convert)
main.add_command(doctor)
main.add_command(generate)
main.add_command(inspect)
main.add_command(quantize)
