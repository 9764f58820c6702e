"""`latentkv generate`: continue a text."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from latentkv.cli.backend_options import BACKEND, wanted_guard
from latentkv.cli.options import (
    ENGINE,
    OUTPUT,
    POOL,
    SAMPLING,
    TIERS,
    checked_prompt,
    engine_options,
    sampling_params,
    with_options,
)

if TYPE_CHECKING:
    from latentkv.engine.llm import LLM
    from latentkv.engine.sampling_params import SamplingParams


@click.command(short_help="Continue a text.")
@click.argument("model", required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="The text to continue.  [default: all of stdin]")
@with_options(SAMPLING, ENGINE, POOL, TIERS, BACKEND, OUTPUT)
def generate(
    *, model: str | None, prompt: str | None, as_json: bool, no_stream: bool, no_stats: bool, **options: Any
) -> None:
    """Continue a text with MODEL: a folder, a .gguf file, a hub id, or nothing for the default model.

    The prompt is given to the model as it is, without a chat template. Text goes to stdout as it is made, the line
    with speed and cache size to stderr.
    """
    text = checked_prompt(_stdin() if prompt is None else prompt)
    params = sampling_params(options)
    from latentkv.cli import running

    loaded = running.load(model, engine_options(options), wanted_guard(options))
    if as_json:
        click.echo(json.dumps(_record(loaded.llm, text, params), indent=2, ensure_ascii=False))
        running.print_guard(loaded)
        return
    try:
        running.show(loaded.llm.stream(text, params), stream=not no_stream)
    finally:
        if not no_stats:
            running.print_stats(loaded)


def _stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("No prompt: give --prompt TEXT or pipe a text into stdin.")
    return sys.stdin.read()


def _record(llm: LLM, prompt: str, params: SamplingParams) -> dict[str, object]:
    """One completion and its counts as JSON-ready values; times in milliseconds."""
    completion = llm.generate(prompt, params)[0]
    stats = llm.stats()
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(completion.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
        "prefill_ms": completion.timings.prefill_ms,
        "decode_ms": completion.timings.decode_ms,
        "cache_bytes_per_token": stats.bytes_per_token,
    }
