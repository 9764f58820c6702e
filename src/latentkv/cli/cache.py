"""`latentkv cache`: what a folder given as --cache-dir holds, and emptying it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latentkv.errors import OptionError, sentence
from latentkv.planner.units import in_gb_and_gib

if TYPE_CHECKING:
    from latentkv.cache.tiers.folders import StoredModel

FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group(short_help="Look into a --cache-dir, or empty it.")
def cache() -> None:
    """The folder that `--cache-dir` names: pages of prompts and answers that the next process finds."""


@cache.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def inspect(*, folder: Path, as_json: bool) -> None:
    """What DIR holds: for each model its format, pages, bytes, and when it was last opened. Changes nothing."""
    from latentkv.cache.tiers.folders import stored_models

    if not folder.is_dir():
        raise OptionError(sentence("cache folder", expected="a folder", got=f"{folder}, which is none"))
    records = [_record(model) for model in stored_models(folder)]
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    for record in records:
        click.echo(_line(record))
    if not records:
        click.echo(f"{folder} holds no pages")


@cache.command()
@FOLDER
def clear(*, folder: Path) -> None:
    """Delete all pages in DIR, of every model; anything else in it stays. Refused while an engine uses it."""
    from latentkv.cache.tiers.folders import clear_cache

    cleared = clear_cache(folder)
    click.echo(f"deleted {in_gb_and_gib(sum(model.size_bytes for model in cleared))} of {len(cleared)} models")


def _record(model: StoredModel) -> dict[str, str | int]:
    """JSON-ready: what the pages are, how many, and their age in seconds."""
    about = dict(model.about)
    used = about.pop("used", None)
    age = {"age_seconds": max(0, int(time.time()) - used)} if isinstance(used, int) else {}
    named = {name.replace(" ", "_"): value for name, value in about.items()}
    return {**named, "pages": model.pages, "bytes": model.size_bytes, **age, "folder": str(model.folder)}


def _line(record: dict[str, str | int]) -> str:
    if "format" not in record:
        return f"{record['folder']}: a damaged index, {record['bytes']:,} bytes"
    tokens = int(record["pages"]) * int(record["page_tokens"])
    hours = int(record["age_seconds"]) / 3600
    return (
        f"{record['model']}: {record['format']}, {record['pages']} pages of {record['page_tokens']} tokens "
        f"({tokens:,} tokens), {in_gb_and_gib(int(record['bytes']))}, last opened {hours:,.1f} hours ago"
    )
