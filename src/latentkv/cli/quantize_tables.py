"""The table that `latentkv quantize` shows to people. Imports rich, so it is imported only when it is printed."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from latentkv.convert.quantize import Quantized, TensorError, relative_error

WIDEST_COLUMNS = 110


def print_quantized(written: Quantized, before: float | None, after: float | None) -> None:
    """Errors by layer, what stayed as it was, the size, and perplexity if it was measured."""
    console = Console(width=WIDEST_COLUMNS, highlight=False, markup=False)
    console.print(_errors(written.errors))
    kinds = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in written.kept})
    if kinds:
        console.print(f"kept as stored: {', '.join(kinds)}, norms and biases")
    if before is not None and after is not None:
        console.print(f"perplexity {before:.3f} before, {after:.3f} after ({after / before - 1:+.2%})")
    console.print(f"{written.folder}: {_mib(written.original_bytes)} became {_mib(written.written_bytes)}")


def _errors(errors: tuple[TensorError, ...]) -> Table:
    table = Table(box=box.SIMPLE, title="relative error of the weights", title_justify="left")
    table.add_column("layer")
    table.add_column("all matrices", justify="right")
    table.add_column("worst one", justify="right")
    table.add_column("")
    layers: dict[int | None, list[TensorError]] = {}
    for error in errors:
        layers.setdefault(error.layer, []).append(error)
    for layer in sorted(layers, key=lambda layer: (layer is None, layer or 0)):
        found = layers[layer]
        worst = max(found, key=lambda error: error.relative)
        name = worst.name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight")
        table.add_row(
            "outside" if layer is None else str(layer),
            f"{relative_error(found):.3%}",
            f"{worst.relative:.3%}",
            f"{name} ({worst.format})",
        )
    return table


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"
