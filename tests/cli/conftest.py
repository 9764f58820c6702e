"""A small random GQA model with a byte-level tokenizer, and the command line run in this process."""

from __future__ import annotations

from pathlib import Path

import click.testing
import pytest

from latentkv.cli.main import main
from support.command_line import Run
from support.tiny_chat import save_chat_model


@pytest.fixture
def run() -> Run:
    """Run `latentkv` with these arguments; a defect (any exception that is not an exit) fails the test."""

    def invoke(*arguments: str | Path, input: str | None = None) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("tiny") / "model")
