"""How commands end: one sentence, the right exit code, and what was printed stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import click
import click.testing
import pytest

from latentkv.cli.program import Program, RunOptions
from latentkv.errors import ConfigError, LatentKVError

MAIN = "import sys; sys.argv[0] = 'latentkv'; from latentkv.cli.main import main; main()"


def program_that(action: Callable[[], None]) -> Program:
    @click.group(cls=Program)
    @click.option("--traceback", is_flag=True)
    @click.pass_obj
    def top(options: RunOptions, traceback: bool) -> None:
        options.traceback = traceback

    @top.command()
    def go() -> None:
        click.echo("before")
        action()

    return top


def ends_with(action: Callable[[], None], *arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(program_that(action), [*arguments, "go"])


def raiser(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_success_is_zero() -> None:
    result = ends_with(lambda: None)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "before\n", "")


@pytest.mark.parametrize("error", [LatentKVError("head: expected 2,\n  got 3."), ConfigError("a b c.")])
def test_our_errors_are_one_line_and_exit_2(error: LatentKVError) -> None:
    result = ends_with(raiser(error))
    assert result.exit_code == 2
    assert result.stdout == "before\n"
    assert result.stderr == f"latentkv: {' '.join(str(error).split())}\n"


def test_file_errors_are_one_line_and_exit_2() -> None:
    result = ends_with(raiser(PermissionError(13, "Permission denied", "model.safetensors")))
    assert result.exit_code == 2
    assert "model.safetensors" in result.stderr


def test_traceback_flag_lets_the_error_through() -> None:
    result = ends_with(raiser(ConfigError("a b c.")), "--traceback")
    assert isinstance(result.exception, ConfigError)


def test_a_defect_keeps_its_traceback() -> None:
    result = ends_with(raiser(ZeroDivisionError()))
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_exits_130_and_keeps_what_was_printed() -> None:
    result = ends_with(raiser(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stdout == "before\n"
    assert "Traceback" not in result.stderr


def latentkv(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--unknown"], ("--unknown", "`latentkv --help`")),
        (["unknown"], ("unknown", "`latentkv --help`")),
        (["chat", "--unknown"], ("--unknown", "`latentkv chat --help`")),
        (["inspect", "--context", "0"], ("--context", "0", "`latentkv inspect --help`")),
        (["inspect", "a", "b"], ("b", "`latentkv inspect --help`")),
        (["generate", "--page-tokens", "3", "-p", "x"], ("--page-tokens", "3")),
    ],
)
def test_usage_errors_of_the_real_program(arguments: list[str], words: tuple[str, ...]) -> None:
    done = latentkv(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_a_closed_pipe_is_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-c", MAIN, "doctor"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.stderr == ""
    assert done.returncode == 1
