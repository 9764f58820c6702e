"""The tables that `latentkv inspect` shows to people. Imports rich, so it is imported only when they are printed."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from latentkv.cli.cache_report import CacheCost, cache_costs
from latentkv.cli.inspect import Report, known_fields
from latentkv.cli.parameters import Parameters
from latentkv.geometry import Geometry, MLAGeometry
from latentkv.planner.twins import twins
from latentkv.planner.units import GB, GIB

WIDEST_COLUMNS = 110


def print_report(report: Report) -> None:
    """Print facts and, where the geometry is known, the cost of its cache."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    console.print(_facts(report))
    if report.geometry is not None:
        console.print(_costs(cache_costs(report.geometry, context_tokens=report.context_tokens), report.context_tokens))
        form = twins(report.geometry)[0]
        console.print(f"  The others would cache keys of {form.head_dim} and values of {form.v_head_dim} per KV head.")


def _facts(report: Report) -> Table:
    table = Table(box=box.SIMPLE, show_header=False, title=report.model.name, title_justify="left")
    table.add_row("architecture", report.architecture)
    if report.geometry is None:
        for name, value in known_fields(report.fields).items():
            table.add_row(name, str(value))
        table.add_row("geometry", "refused (the reason follows)")
        return table
    table.add_row("attention", _describe(report.geometry))
    table.add_row("layers", str(report.geometry.num_hidden_layers))
    table.add_row("parameters", _count(report.parameters))
    return table


def _describe(geometry: Geometry) -> str:
    if isinstance(geometry, MLAGeometry):
        groups = f" in {geometry.rope_groups} groups" if geometry.rope_groups > 1 else ""
        return (
            f"MLA: {geometry.num_attention_heads} heads over one latent of {geometry.kv_lora_rank} and a RoPE key of "
            f"{geometry.qk_rope_head_dim}{groups}; per head {geometry.qk_nope_head_dim} without RoPE, "
            f"{geometry.v_head_dim} values"
        )
    return (
        f"{geometry.kind.upper()}: {geometry.num_attention_heads} query heads, "
        f"{geometry.num_key_value_heads} KV heads, keys of {geometry.head_dim}, values of {geometry.v_head_dim}"
    )


def _count(parameters: Parameters | None) -> str:
    if parameters is None:
        return "not known: no weight files here, and no rule for this model_type"
    mixture = parameters.active not in (None, parameters.total)
    active = f", {parameters.active:,} active per token" if mixture else ""
    source = "headers of the weight files" if parameters.counted_from == "weights" else "configuration"
    return f"{parameters.total:,}{active} (from the {source})"


def _costs(costs: tuple[CacheCost, ...], context_tokens: int) -> Table:
    table = Table(box=box.SIMPLE, title=f"cache, context of {context_tokens:,} tokens", title_justify="left")
    table.add_column("attention")
    table.add_column("format")
    for heading in ("bytes/token/layer", "bytes/token", "GiB at context", "GB at context", "x own"):
        table.add_column(heading, justify="right")
    for index, cost in enumerate(costs):
        own = " (its own)" if cost.attention == costs[0].attention else ""
        table.add_row(
            f"{cost.attention}{own}",
            cost.format,
            f"{cost.bytes_per_token_and_layer:,}",
            f"{cost.bytes_per_token:,}",
            f"{cost.context_bytes / GIB:,.3f}",
            f"{cost.context_bytes / GB:,.3f}",
            f"{cost.ratio_to_own:.2f}",
            end_section=index + 1 < len(costs) and costs[index + 1].attention != cost.attention,
        )
    return table
