"""How every command ends: what was printed stays, one sentence on stderr, and an exit code.

    0    done
    2    the input cannot be used: the sentence says what, what was expected and what helps
    130  interrupted with Ctrl-C
    1    the reader of our output went away (silent), or a defect in latentkv (traceback)

Knows no command.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import click

from latentkv.cli.spinning import limit_spinning
from latentkv.errors import LatentKVError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclass
class RunOptions:
    """Options of the whole program, filled in by the top command before a subcommand runs."""

    traceback: bool = False


class Program(click.Group):
    """A click group whose `main` turns every expected failure into one sentence and an exit code.

    `homes` says where each subcommand lives ("package.module"; the command has the module's name): it is imported when
    it is run or listed, so that no command waits for the imports of another.
    """

    def __init__(self, *args: Any, homes: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.homes = homes or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, sorted."""
        return sorted({*super().list_commands(ctx), *self.homes})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of that name, imported now; None when there is none."""
        if cmd_name in self.homes and cmd_name not in self.commands:
            self.add_command(getattr(import_module(self.homes[cmd_name]), cmd_name))
        return super().get_command(ctx, cmd_name)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; like click, end the process unless `standalone_mode` is off."""
        options = RunOptions()
        click_main: Callable[..., object] = super().main
        run = partial(click_main, *args, standalone_mode=False, obj=options, **extra)
        if not standalone_mode:
            return run()
        limit_spinning()
        sys.exit(_exit_code(run, options))


def _exit_code(run: Callable[[], object], options: RunOptions) -> int:
    try:
        result = run()
        sys.stdout.flush()
    except (LatentKVError, OSError) as error:
        return _failed(error, options)
    except click.UsageError as error:
        return _say(_usage_sentence(error))
    except click.ClickException as error:
        return _say(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _failed(error: LatentKVError | OSError, options: RunOptions) -> int:
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _forget_stdout()
        return 1
    if options.traceback:
        raise error
    return _say(str(error))


def _say(message: str) -> int:
    click.echo(f"latentkv: {' '.join(message.split())}", err=True)
    return EXIT_BAD_INPUT


def _usage_sentence(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "latentkv"
    return f"{error.format_message().rstrip('.')}. See `{command} --help`."


def _forget_stdout() -> None:
    """Without this the interpreter flushes the closed pipe once more at exit and prints an error of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
