"""`latentkv catalog`: the models that `latentkv plan` knows by name, and adding one's own."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group(short_help="List, show and add models that can be planned for.")
def catalog() -> None:
    """The models that `latentkv plan` knows by name: facts with their sources, and the user's own."""


@catalog.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of names.")
@click.argument("words", nargs=-1)
def list_models(*, words: tuple[str, ...], as_json: bool) -> None:
    """Names of all models; of those that contain all WORDS if any are given."""
    from latentkv.planner.catalog import additions, find_record, model_names

    own = additions()
    names = [name for name in model_names() if all(word.lower() in name.lower() for word in words)]
    if as_json:
        click.echo(json.dumps(names, indent=2))
        return
    width = max((len(name) for name in names), default=0)
    for name in names:
        record = find_record(name)
        elements = record.get("kv_elems_per_token")
        size = f"{elements:>9,} elements/token" if elements else ""
        click.echo(f"{name:<{width}}  {'added by you' if name in own else record.get('kind', ''):<12}  {size}".rstrip())


@catalog.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON object.")
def show(*, name: str, as_json: bool) -> None:
    """All facts about the model NAME as they are stored, and where they are from."""
    from latentkv.planner.catalog import find_record

    record = find_record(name)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    for key, value in record.items():
        if key != "config":
            click.echo(f"{key:<22} {f'{value:,}' if isinstance(value, int) else value}")
    for key, value in record["config"].items():
        click.echo(f"  {key:<36} {value}")


@catalog.command()
@click.argument("model", metavar="CONFIG")
@click.option("--name", help="To call it by.  [default: the folder's or file's name]")
@click.option("--params", type=click.IntRange(min=1), help="Parameters in all, where they cannot be counted.")
def add(*, model: str, name: str | None, params: int | None) -> None:
    """Add the model that a config.json, a folder or a .gguf file describes, under a name of its own."""
    from latentkv.cli.resolve_model import resolve_model
    from latentkv.planner.catalog import add_model

    path = Path(model).expanduser()
    found = resolve_model(str(path) if path.exists() else f"./{model}")
    default = path.resolve().parent.name if path.name == "config.json" else path.stem or path.resolve().name
    added = name or default
    file = add_model(
        added,
        dict(found.fields),
        source=f"added from {path.resolve()}",
        params_total=params or found.params_total,
        params_active=found.params_active,
    )
    click.echo(f"added {added} to {file}: `latentkv plan {added}`")
