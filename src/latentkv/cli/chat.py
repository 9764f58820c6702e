"""`latentkv chat`: one answer, or a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from latentkv.cli.backend_options import BACKEND, wanted_guard
from latentkv.cli.options import (
    ENGINE,
    POOL,
    SAMPLING,
    TIERS,
    checked_prompt,
    engine_options,
    sampling_params,
    with_options,
)
from latentkv.errors import CapacityError

if TYPE_CHECKING:
    from latentkv.engine.llm import LLM
    from latentkv.engine.sampling_params import SamplingParams

Messages = list[dict[str, str]]


@click.command(short_help="Talk to a model.")
@click.argument("model", required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="Answer this one message and end.")
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@click.option("--no-stream", is_flag=True, help="Print an answer when it is complete.")
@click.option("--no-stats", is_flag=True, help="Leave out the line with speed and cache size on stderr.")
@with_options(SAMPLING, ENGINE, POOL, TIERS, BACKEND)
def chat(
    *, model: str | None, prompt: str | None, system: str | None, no_stream: bool, no_stats: bool, **options: Any
) -> None:
    """Talk to MODEL: a folder, a .gguf file, a hub id, or nothing for the default model, SmolLM2-135M-Instruct.

    The model's own chat template is used. Without --prompt, lines are read until the end of input: /reset forgets the
    conversation, /exit ends it. At the default temperature of 0 the same conversation gives the same answers.
    """
    first = checked_prompt(prompt) if prompt is not None else None
    params = sampling_params(options)
    from latentkv.cli import running

    loaded = running.load(model, engine_options(options), wanted_guard(options))
    opening: Messages = [{"role": "system", "content": system}] if system else []
    try:
        if first is not None:
            _answer(loaded.llm, [*opening, _user(first)], params, stream=not no_stream)
        else:
            _converse(loaded.llm, opening, params, stream=not no_stream)
    finally:
        if not no_stats:
            running.print_stats(loaded)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(llm: LLM, messages: Messages, params: SamplingParams, *, stream: bool) -> str:
    from latentkv.cli import running

    return running.show(llm.stream(llm.chat_prompt(messages), params), stream=stream)


def _converse(llm: LLM, opening: Messages, params: SamplingParams, *, stream: bool) -> None:
    messages = list(opening)
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            continue
        asked = [*messages, _user(line)]
        try:
            answer = _answer(llm, asked, params, stream=stream)
        except CapacityError as error:
            click.echo(f"latentkv: {error} /reset starts a new conversation.", err=True)
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]


def _lines() -> Iterator[str]:
    """What is typed or piped in, line by line, without empty lines; on a terminal with a prompt and line editing."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not terminal:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  (its import gives `input` history and editing)

    click.echo("/reset forgets the conversation, /exit or Ctrl-D ends it.", err=True)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line:
            yield line
