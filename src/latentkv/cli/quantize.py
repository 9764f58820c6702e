"""`latentkv quantize`: write a checkpoint with int8 or int4 weights, and tell what that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from latentkv.errors import OptionError, TokenizerError, sentence

if TYPE_CHECKING:
    from latentkv.convert.quantize import Quantized


@click.command(short_help="Write a model with int8 or int4 weights.")
@click.argument("model")
@click.option(
    "--out", "output", required=True, metavar="FOLDER", help="The new folder; it appears when it is complete."
)
@click.option("--weights", type=click.Choice(["int8", "int4"]), required=True, help="What matrices are rounded to.")
@click.option(
    "--group",
    type=click.Choice(["16", "32", "64", "128"]),
    default="32",
    show_default=True,
    help="Inputs that share a scale: fewer are finer, and take more memory.",
)
@click.option("--text", type=click.Path(), metavar="FILE", help="Report perplexity on this text, before and after.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def quantize(
    *, model: str, output: str, weights: Literal["int8", "int4"], group: str, text: str | None, as_json: bool
) -> None:
    """Write MODEL (a folder, a .gguf file or a hub id; "default" for SmolLM2) with int8 or int4 weights.

    Norms, biases, routers, kv_b_proj and an untied embedding stay as they are, the head is int8 (docs/linear.md
    says why). The result is a folder of ordinary safetensors that every command takes. Errors are |W - W'| / |W|.
    """
    from latentkv.cli.running import loading_bar
    from latentkv.convert.quantize import Quantization

    name = None if model == "default" else model
    work = Quantization(name, output, weights=weights, group=int(group))
    before = _perplexity(name, text, "perplexity before") if text is not None else None
    with loading_bar("quantising") as progress:
        written = work.write(progress)
    after = _perplexity(str(written.folder), text, "perplexity after") if text is not None else None
    if as_json:
        click.echo(json.dumps(_record(written, before, after), indent=2))
        return
    from latentkv.cli.quantize_tables import print_quantized

    print_quantized(written, before, after)


def _perplexity(model: str | None, text: str, what: str) -> float:
    """Of the model on the file. Raises OptionError for a file that is no text, TokenizerError without a tokenizer."""
    content = _read(text)
    from latentkv.cli.running import loading_bar
    from latentkv.evaluate.perplexity import perplexity
    from latentkv.models.load import load_model

    loaded = load_model(model)
    if loaded.tokenizer is None:
        raise TokenizerError("--text needs a model with a tokenizer, and this one came without.")
    with loading_bar(what) as progress:
        return perplexity(loaded.model, loaded.tokenizer.encode(content), progress=progress)


def _read(text: str) -> str:
    try:
        return Path(text).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(sentence(f"--text {text}", expected="UTF-8 text", got="bytes that are not")) from error


def _record(written: Quantized, before: float | None, after: float | None) -> dict[str, Any]:
    from latentkv.convert.quantize import relative_error

    layers: dict[int | None, list[Any]] = {}
    for error in written.errors:
        layers.setdefault(error.layer, []).append(error)
    return {
        "output": str(written.folder),
        "original_bytes": written.original_bytes,
        "written_bytes": written.written_bytes,
        "relative_error": relative_error(list(written.errors)),
        "layers": [{"layer": layer, "relative_error": relative_error(errors)} for layer, errors in layers.items()],
        "tensors": [
            {"name": error.name, "format": error.format, "relative_error": error.relative} for error in written.errors
        ],
        "kept": list(written.kept),
        "perplexity": None if before is None else {"before": before, "after": after},
    }
