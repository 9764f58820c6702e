"""`latentkv convert`: write a GQA or MHA checkpoint as MLA."""

from __future__ import annotations

import json

import click


@click.command(short_help="Write a GQA or MHA model as MLA.")
@click.argument("model")
@click.argument("output")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the written tensors; auto keeps what each is stored in (float32 where it was quantised).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a sentence.")
def convert(*, model: str, output: str, dtype: str, as_json: bool) -> None:
    """Write MODEL (a folder, a .gguf file or a hub id; "default" for SmolLM2) as MLA into the new folder OUTPUT.

    The result computes the same function from a cache of the same size: keys become the RoPE key, values the latent.
    It is the form that compression starts from. OUTPUT appears only when it is complete.
    """
    from latentkv.cache.layout import layout_for
    from latentkv.cli.running import loading_bar
    from latentkv.convert.exact import convert_exact
    from latentkv.geometry import from_config
    from latentkv.models.config_file import read_config

    with loading_bar("converting") as progress:
        folder = convert_exact(None if model == "default" else model, output, dtype=dtype, progress=progress)
    geometry = from_config(read_config(folder / "config.json"))
    bytes_per_token = layout_for(geometry, "bf16").bytes_per_token
    if as_json:
        click.echo(json.dumps({"output": str(folder), "kind": geometry.kind, "bf16_bytes_per_token": bytes_per_token}))
    else:
        click.echo(f"{folder}: {geometry.kind.upper()}, {bytes_per_token:,} bytes of cache per token in bf16")
