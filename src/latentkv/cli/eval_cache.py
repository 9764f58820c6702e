"""`latentkv eval cache`: perplexity, divergence, agreement and retrieval in each cache format."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latentkv.cache.layout import FORMATS
from latentkv.errors import OptionError, TokenizerError, sentence

if TYPE_CHECKING:
    from latentkv.evaluate.cache_quality import CacheQuality, Options


@click.command(short_help="Quality of each cache format on a text.")
@click.argument("model", required=False)
@click.option("--text", "text_file", required=True, metavar="FILE", help="A UTF-8 text; - is stdin.")
@click.option("--tokens", type=int, default=20_000, show_default=True, help="Read so much of it.")
@click.option(
    "--formats",
    default="f32,fp8,int8,int6,int4",
    show_default=True,
    metavar="NAMES",
    help=f"With commas between; bf16, which the others are compared with, is always measured. "
    f"Of {', '.join(FORMATS)} and the variants that docs/cache_formats.md describes.",
)
@click.option("--window", type=int, default=2048, show_default=True, help="Tokens of context at most.")
@click.option("--needles", type=int, default=12, show_default=True, help="Hidden numbers to be found; 0 for none.")
@click.option("--needle-tokens", type=int, default=1024, show_default=True, help="Text that each is hidden in.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What the model computes in.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw divergence against bytes (.png, .svg, .pdf).")
def cache(
    *,
    model: str | None,
    text_file: str,
    tokens: int,
    formats: str,
    window: int,
    needles: int,
    needle_tokens: int,
    dtype: str,
    as_json: bool,
    plot_file: str | None,
) -> None:
    """Measure what each cache format costs MODEL (a folder, a .gguf file, a hub id, or nothing for the default model).

    The text is read in windows, each token predicted from the cache as it is stored in that format. Per format:
    perplexity, the KL divergence of the next-token distribution from bf16's, how often the likeliest token is the
    same, and how many hidden numbers are found. After Ctrl-C the windows that were finished are shown.
    """
    from latentkv.evaluate.cache_quality import Options
    from latentkv.evaluate.plot import check_plot

    options = Options(
        formats=_names(formats),
        tokens=tokens,
        window_tokens=window,
        needles=needles,
        needle_tokens=needle_tokens,
    )
    _ = options.all_formats  # refuses unknown names before anything is loaded
    if plot_file is not None:
        check_plot(Path(plot_file))
    text = read_text(text_file)
    quality = _prepare(model, text, dtype, options)
    try:
        _measure(quality)
    finally:
        _show(quality, model or "default model", text_file, as_json=as_json, plot_file=plot_file)


def _names(formats: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in formats.split(",") if name.strip())


def read_text(name: str) -> str:
    """A file's text, or all of stdin for "-". Raises OptionError for what is no text, OSError for what is no file."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(sentence("--text", expected="UTF-8 text", got=f"other bytes in {name}")) from error
    if not text.strip():
        raise OptionError(sentence("--text", expected="some text", got=f"none in {name}"))
    return text


def _prepare(model: str | None, text: str, dtype: str, options: Options) -> CacheQuality:
    from latentkv.cli.running import loading_bar
    from latentkv.evaluate.cache_quality import CacheQuality
    from latentkv.models.load import load_model

    with loading_bar("loading") as progress:
        loaded = load_model(model, dtype=dtype, progress=progress)
    if loaded.tokenizer is None:
        raise TokenizerError("the model has no tokenizer: a text cannot be turned into its tokens.")
    return CacheQuality(loaded.model, loaded.tokenizer, text, options)


def _measure(quality: CacheQuality) -> None:
    from latentkv.cli.running import loading_bar

    with loading_bar("measuring") as progress:
        quality.run(progress)


def _show(quality: CacheQuality, model: str, text_file: str, *, as_json: bool, plot_file: str | None) -> None:
    from latentkv.cli.eval_tables import print_quality
    from latentkv.evaluate.cache_quality import as_records
    from latentkv.evaluate.plot import draw_quality

    records = as_records(tuple(quality.rows.values()))
    if as_json:
        record = {"model": model, "text": text_file, "options": asdict(quality.options), "formats": records}
        click.echo(json.dumps(record, indent=2))
    else:
        print_quality(records)
    if plot_file is not None:
        draw_quality({Path(text_file).name: records}, Path(plot_file), title=f"{model}: what a compact cache costs")
