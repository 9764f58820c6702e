"""`latentkv bench model`: prefill and decode of a whole model, with transformers beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from latentkv.cache.layout import FORMATS
from latentkv.cli.bench_progress import reporting
from latentkv.cli.options import ACTIVATIONS
from latentkv.errors import OptionError, sentence

if TYPE_CHECKING:
    from latentkv.bench.model import Case, Row
    from latentkv.bench.subject import Subject

DTYPES = ("float32", "bfloat16")
PROFILE_CONTEXT = 128


@click.command(short_help="Prefill and decode of a model, end to end.")
@click.argument("model", required=False)
@click.option("--against", type=click.Choice(["transformers"]), help="Run the same weights in transformers too.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs; the median counts.")
@click.option("--tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Tokens of a decode run.")
@click.option("--only", default="", metavar="TEXT", help="Only cases whose name holds this, like decode or 2048.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for everybody.  [default: torch's own]")
@click.option(
    "--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", show_default=True, help="What we compute in."
)
@click.option(
    "--weights",
    type=click.Choice(["stored", "dtype"]),
    default="stored",
    show_default=True,
    help="How we hold matrices: as the checkpoint stores them, or in the dtype we compute in.",
)
@ACTIVATIONS
@click.option(
    "--attention", type=click.Choice(["mla", "gqa"]), default="mla", show_default=True, help="As in `generate`."
)
@click.option(
    "--cache-format", type=click.Choice(list(FORMATS)), default="bf16", show_default=True, help="How rows are stored."
)
@click.option("--profile", is_flag=True, help="Show what a decode step consists of instead, at a context of 128.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def model(
    *, model: str | None, against: str | None, threads: int | None, profile: bool, as_json: bool, **options: Any
) -> None:
    """Measure MODEL: a folder, a .gguf file, a hub id, "default" for SmolLM2, or nothing for a random model.

    The random model is a dense one with DeepSeek-V2's attention (198M parameters in bfloat16). Prefill is of prompts
    never seen before; decode is one request, greedy, with everything the engine does for a token. Contexts that the
    model is too short for are left out. transformers computes in float32 and in bfloat16; its faster one counts.
    """
    repeats, tokens, only = options.pop("repeats"), options.pop("tokens"), options.pop("only")
    cases = _cases(only)
    cache_format = options.pop("cache_format")
    if profile:
        if against or only:
            raise OptionError(sentence("--profile", expected="neither --against nor --only", got="one of them"))
        _profile(model, threads, options, tokens=tokens, cache_format=cache_format, as_json=as_json)
        return
    from latentkv.bench.model import measure_model

    with reporting() as report:
        subject = _subject(model, threads, report, options)
        fitting = [case for case in cases if case.context_tokens + case.new_tokens + tokens < subject.longest]
        rows = measure_model(
            subject.model,
            fitting,
            peers=subject.peers(DTYPES) if against else (),
            repeats=repeats,
            decode_tokens=tokens,
            cache_format=cache_format,
            report=report,
        )
    _print(subject, rows, {"repeats": repeats, "cache_format": cache_format, **options}, as_json=as_json)


def _cases(only: str) -> list[Case]:
    from latentkv.bench.model import CASES

    cases = [case for case in CASES if only in case.name]
    if not cases:
        expected = f"a part of: {', '.join(case.name for case in CASES)}"
        raise OptionError(sentence("--only", expected=expected, got=repr(only)))
    return cases


def _profile(
    model: str | None, threads: int | None, options: dict[str, Any], *, tokens: int, cache_format: str, as_json: bool
) -> None:
    from latentkv.bench.profile import profile_decode, timing
    from latentkv.bench.subject import environment

    with reporting() as report, timing() as clock:
        subject = _subject(model, threads, report, options)
        report(0, 1, "decoding")
        parts = profile_decode(
            subject.model, clock, context_tokens=PROFILE_CONTEXT, tokens=tokens, cache_format=cache_format
        )
    facts = {**subject.facts, **environment(), "context_tokens": PROFILE_CONTEXT, "cache_format": cache_format}
    if as_json:
        click.echo(json.dumps({**facts, **options, "parts": [asdict(part) for part in parts]}, indent=2))
        return
    from latentkv.cli.bench_tables import print_parts

    print_parts(parts, facts)


def _subject(
    model: str | None, threads: int | None, report: Callable[[int, int, str], None], options: dict[str, Any]
) -> Subject:
    import torch

    from latentkv.bench.subject import open_subject

    if threads is not None:
        torch.set_num_threads(threads)
    report(0, 1, "loading")
    return open_subject(model, **options)


def _print(subject: Subject, rows: Sequence[Row], options: dict[str, Any], *, as_json: bool) -> None:
    from latentkv.bench.model import as_record
    from latentkv.bench.subject import environment

    facts = {**subject.facts, **environment(), **options}
    if as_json:
        click.echo(json.dumps({**facts, "cases": as_record(rows)}, indent=2))
        return
    from latentkv.cli.bench_tables import print_speeds

    print_speeds(rows, facts)
