"""`latentkv inspect`: what a model is and what its cache costs, without loading a weight."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import click

from latentkv.cli.model_config import NamedConfig, find_config
from latentkv.cli.parameters import Parameters, count_parameters
from latentkv.errors import ConfigError, LatentKVError, UnsupportedModelError
from latentkv.geometry import Geometry, from_config
from latentkv.geometry_fields import Fields, language_model_fields

DEFAULT_CONTEXT_TOKENS = 4096
KNOWN_FIELDS = (
    "model_type",
    "num_hidden_layers",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "max_position_embeddings",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of a model; `refusal` is set when its geometry could not be resolved."""

    model: NamedConfig
    fields: Fields
    context_tokens: int
    geometry: Geometry | None
    parameters: Parameters | None
    refusal: LatentKVError | None

    @property
    def architecture(self) -> str:
        """The configuration's own name for the model's class."""
        names = self.model.config.get("architectures")
        if isinstance(names, list) and names:
            return str(names[0])
        return str(self.model.config.get("model_type", "not stated"))


@click.command(short_help="Show a model's geometry, parameters and cache bytes.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help=f"Size the cache for this many tokens.  [default: the model's maximum, else {DEFAULT_CONTEXT_TOKENS}]",
)
def inspect(*, model: str | None, as_json: bool, context_tokens: int | None) -> None:
    """Show what MODEL is and what its cache costs, beside MHA, GQA and MQA of the same heads.

    MODEL is a folder, a config.json, a .gguf file, a hub id, or nothing for the default model. Only its configuration
    and the headers of its weight files are read. A model that latentkv refuses is shown as far as it is known, with
    the reason on stderr and exit code 2.
    """
    report = make_report(find_config(model), context_tokens=context_tokens)
    if as_json:
        click.echo(json.dumps(as_record(report), indent=2))
    else:
        from latentkv.cli.inspect_tables import print_report

        print_report(report)
    if report.refusal is not None:
        raise report.refusal


def make_report(model: NamedConfig, *, context_tokens: int | None) -> Report:
    """Resolve a model as far as its configuration allows. Raises ConfigError only for what is no configuration."""
    fields = language_model_fields(model.config)
    geometry, refusal, parameters = None, None, None
    try:
        geometry = from_config(model.config)
    except (ConfigError, UnsupportedModelError) as error:
        refusal = error
    if geometry is not None:
        parameters = count_parameters(fields, geometry, model.weights)
    return Report(model, fields, context_tokens or _longest_context(fields), geometry, parameters, refusal)


def as_record(report: Report) -> dict[str, object]:
    """The report as JSON-ready values; sizes in bytes, counts as whole numbers."""
    from latentkv.cli.cache_report import cache_costs

    geometry = report.geometry
    costs = cache_costs(geometry, context_tokens=report.context_tokens) if geometry is not None else ()
    return {
        "model": report.model.name,
        "architecture": report.architecture,
        "resolved": geometry is not None,
        "reason": str(report.refusal) if report.refusal is not None else None,
        "known_fields": known_fields(report.fields),
        "geometry": {"kind": geometry.kind, **asdict(geometry)} if geometry is not None else None,
        "parameters": asdict(report.parameters) if report.parameters is not None else None,
        "context_tokens": report.context_tokens,
        "cache": [asdict(cost) for cost in costs],
    }


def known_fields(fields: Fields) -> dict[str, object]:
    """The plain sizes that the configuration states, for a model whose geometry is refused."""
    return {name: fields[name] for name in KNOWN_FIELDS if isinstance(fields.get(name), int | str)}


def _longest_context(fields: Fields) -> int:
    longest = fields.get("max_position_embeddings")
    return longest if isinstance(longest, int) and longest > 0 else DEFAULT_CONTEXT_TOKENS
