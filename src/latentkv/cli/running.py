"""Loads a model for a command, streams its text, and sums up the run in one line. Imports the engine when called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from latentkv.cache.layout import layout_for
from latentkv.cli.options import EngineOptions
from latentkv.geometry import Geometry, MLAGeometry
from latentkv.planner.layers import attention_name
from latentkv.planner.twins import twins

if TYPE_CHECKING:
    from latentkv.backends.guard import Guard
    from latentkv.engine.llm import LLM
    from latentkv.engine.output import EngineStats
    from latentkv.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class Running:
    """A loaded model, the attention its checkpoint had before it was seen as MLA, and who computes attention.

    guard: where backends are chosen step by step
    """

    llm: LLM
    original: Geometry
    cache_format: str
    attention_path: str
    guard: Guard | None = None


def load(model: str | None, options: EngineOptions, guard: Guard | None = None) -> Running:
    """The model that MODEL names, ready to run. Raises whatever finding and loading it raise."""
    with loading_bar("loading") as progress:
        from latentkv.cache.latent import LatentCache
        from latentkv.engine.llm import LLM

        loaded = load_as(options, model, guard=guard, progress=progress)
        llm = LLM(
            loaded.model,
            tokenizer=loaded.tokenizer,
            cache_format=options.cache_format,
            page_tokens=options.page_tokens,
            cache_tokens=options.cache_tokens,
            speculation=options.speculation,
            **asdict(options.tiers),
        )
        layout = layout_for(loaded.model.geometry, options.cache_format, page_tokens=options.page_tokens)
        path = loaded.model.attention_path(LatentCache(layout, num_pages=1))
    return Running(llm, loaded.original_geometry, options.cache_format, path, guard)


def load_as(
    options: EngineOptions,
    model: str | None,
    *,
    guard: Guard | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """The model alone, loaded as the options say. Raises what `load_model` raises."""
    from latentkv.models.load import load_model

    return load_model(
        model,
        dtype=options.dtype,
        activations=options.activations,
        attention=options.attention,
        memory_bytes=options.memory_bytes,
        guard=guard,
        progress=progress,
    )


def show(pieces: Iterable[str], *, stream: bool) -> str:
    """Print text to stdout, piece by piece or at the end, and return it; after Ctrl-C what was shown stays."""
    shown: list[str] = []
    try:
        for piece in pieces:
            shown.append(piece)
            if stream:
                click.echo(piece, nl=False)
    finally:
        text = "".join(shown)
        click.echo("" if stream else text)
    return text


def print_stats(running: Running) -> None:
    """One line on stderr about everything this model has run."""
    line = stats_line(
        running.llm.stats(),
        geometry=running.llm.engine.model.geometry,
        original=running.original,
        cache_format=running.cache_format,
        attention_path=running.attention_path,
    )
    click.echo(line, err=True)
    print_guard(running)


def print_guard(running: Running) -> None:
    """On stderr, what `guard_lines` tells where backends were watched."""
    for line in guard_lines(running.guard) if running.guard is not None else ():
        click.echo(line, err=True)


def guard_lines(guard: Guard) -> Iterator[str]:
    """What backends did that were watched: failures, and how the shadow agrees. Nothing without both."""
    for (backend, reason), count in guard.state().failures.items():
        yield f"backend {backend} failed in {count} steps ({reason}); others finished them"
    if guard.shadow is not None:
        seen = guard.shadow.state()
        yield (
            f"shadow {seen.backend}: {seen.calls} layers of {seen.steps} steps compared, {seen.mismatches} disagree, "
            f"{seen.errors} it could not compute"
        )


def stats_line(
    stats: EngineStats, *, geometry: Geometry, original: Geometry, cache_format: str, attention_path: str
) -> str:
    """Speed of prefill and decode, the cache's bytes per token against the attention it replaces, and what ran."""
    reused = f" ({stats.reused_tokens} more found in the cache)" if stats.reused_tokens else ""
    sizes = [f"{stats.bytes_per_token:,} B/token ({cache_format} {attention_name(geometry)})"]
    for form in _replaced(geometry, original):
        size = layout_for(form, cache_format).bytes_per_token
        sizes.append(f"{size:,} ({attention_name(form)})")
    return " · ".join(
        (
            f"prefill {_speed(stats.prefill_tokens, stats.prefill_seconds)}{reused}",
            f"decode {_speed(stats.decode_tokens, stats.decode_seconds)}",
            f"cache {' vs '.join(sizes)}",
            f"attention {attention_path}",
        )
    )


def _replaced(geometry: Geometry, original: Geometry) -> tuple[Geometry, ...]:
    """What the cache is measured against: the checkpoint's own attention (for MLA: GQA-8 of its heads), then MHA."""
    others = twins(original)
    mha = tuple(form for form in others if form.kind == "mha")
    if isinstance(original, MLAGeometry):
        return (*(form for form in others if form.kind == "gqa"), *mha)
    return mha if geometry == original else (original, *mha)


def _speed(tokens: int, seconds: float) -> str:
    rate = f" at {tokens / seconds:,.0f} tok/s" if tokens and seconds else ""
    return f"{tokens} tokens{rate}"


@contextmanager
def loading_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function to report (done, in all) to: it draws a bar on stderr, gone at the end; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
