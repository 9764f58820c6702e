"""`latentkv backends`: who can compute a model's attention here, why the others cannot, and what is taken."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, FORMATS, PAGE_TOKENS
from latentkv.cli.backend_options import PLUGIN
from latentkv.cli.options import with_options

if TYPE_CHECKING:
    from latentkv.backends.explain import Candidate, Choice
    from latentkv.geometry import Geometry

DECODE_CONTEXTS = (128, 1024, 8192, 32_768, 131_072)
PREFILL_CHUNKS = (16, 64, 256, 2048)


@dataclass(frozen=True, slots=True)
class Report:
    """What the command tells."""

    model: str
    geometry: Geometry
    format: str
    dtype: str
    candidates: list[Candidate]
    choices: list[Choice]


@click.command(short_help="Show which attention backends can run a model here, and why not.")
@click.argument("model", required=False)
@click.option("--format", type=click.Choice(list(FORMATS)), default="bf16", show_default=True, help="Of the cache.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What the model computes in.",
)
@click.option(
    "--attention",
    type=click.Choice(["mla", "gqa"]),
    default="mla",
    show_default=True,
    help="Whether a GQA or MHA model runs as MLA, as it does by default, or as it is.",
)
@click.option(
    "--page-tokens",
    type=click.Choice([str(size) for size in PAGE_TOKENS]),
    default=str(DEFAULT_PAGE_TOKENS),
    show_default=True,
    help="Tokens in a page of the cache.",
)
@click.option("--hub", is_flag=True, help="Fetch the configuration of a model that is not in the catalogue.")
@with_options((PLUGIN,))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def backends(
    *,
    model: str | None,
    format: str,
    dtype: str,
    attention: str,
    page_tokens: str,
    hub: bool,
    backend_plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show which backends can compute MODEL's attention on this machine, and why the others cannot.

    MODEL is one of the catalogue, a folder, a config.json, a .gguf file, or nothing for the default model; no weight is
    read. The first that can is what `--backend auto` takes; below, what runs for one sequence of some lengths.
    """
    from latentkv.backends.explain import candidates, choices, model_request
    from latentkv.backends.registry import load_plugin

    name, geometry = _geometry(model, as_mla=attention == "mla", hub=hub)
    plugins = [load_plugin(spec) for spec in backend_plugins]
    request = model_request(geometry, format=format, page_tokens=int(page_tokens), query_dtype=dtype)
    lengths = [(1, context) for context in DECODE_CONTEXTS]
    lengths += [(chunk, context) for context in (0, 8192) for chunk in PREFILL_CHUNKS]
    lengths = [(query, context + query if query > 1 else context) for query, context in lengths]
    report = Report(
        name,
        geometry,
        format,
        dtype,
        candidates(request, plugins=plugins),
        choices(request, lengths, plugins=plugins),
    )
    click.echo(json.dumps(asdict(report), indent=2) if as_json else _text(report), nl=as_json)


def _geometry(model: str | None, *, as_mla: bool, hub: bool) -> tuple[str, Geometry]:
    from latentkv.geometry import AttentionGeometry, from_config

    if model is None:
        from latentkv.cli.model_config import find_config

        named = find_config(None)
        name, config = named.name, named.config
    else:
        from latentkv.cli.resolve_model import resolve_model

        found = resolve_model(model, hub=hub)
        name, config = found.name, dict(found.fields)
    geometry = from_config(config)
    if as_mla and isinstance(geometry, AttentionGeometry):
        from latentkv.models.exact_mla import exact_mla_config

        geometry = from_config(exact_mla_config(config))
    return name, geometry


def _text(report: Report) -> str:
    from latentkv.backends.isa import active_isa
    from latentkv.cli.text_table import facts, table

    taken = next((one.name for one in report.candidates if one.ok), "nothing")
    if taken == "native":
        taken = f"native on {active_isa()}"
    head = facts(
        [
            ("model", report.model),
            ("attention", _described(report.geometry)),
            ("cache", f"{report.format}, computed in {report.dtype}"),
            ("auto takes", taken),
        ]
    )
    able = table(
        ("backend", "can run", "why not"),
        [(_indented(one.name), "yes" if one.ok else "no", one.reason) for one in report.candidates],
        left=3,
    )
    if not report.choices:
        return head + able
    runs = table(
        ("new tokens", "context", "what runs"),
        [(f"{one.query_tokens:,}", f"{one.context_tokens:,}", one.path) for one in report.choices],
        left=0,
    )
    return head + able + runs


def _described(geometry: Geometry) -> str:
    values = {name: value for name, value in asdict(geometry).items() if name != "num_hidden_layers"}
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _indented(name: str) -> str:
    return f"  {name}" if ":" in name else name
