"""What tests of commands share: how a command is run, and what a refusal must look like."""

from __future__ import annotations

from collections.abc import Callable

import click.testing

Run = Callable[..., click.testing.Result]


def assert_one_sentence(result: click.testing.Result, *parts: str) -> None:
    """Exit code 2, nothing but one line on stderr, and these words in it."""
    assert result.exit_code == 2
    assert result.stderr.startswith("latentkv: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
