"""Draws divergence against bytes per token. Imports matplotlib, which the extra `plot` installs, when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentkv.cache.layout import FORMATS
from latentkv.errors import OptionError, sentence


def check_plot(path: Path) -> None:
    """Raise OptionError unless a picture can be written to `path`: before anything is computed for it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = "Install it: pip install 'latentkv[plot]'."
        raise OptionError(sentence("--plot", expected="matplotlib", got="none installed", remedy=remedy)) from error
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise OptionError(
            sentence("--plot", expected=f"a file name ending in one of {', '.join(kinds)}", got=str(path))
        )
    if not path.absolute().parent.is_dir():
        raise OptionError(sentence("--plot", expected="a folder that exists", got=str(path.parent)))


def draw_quality(series: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, title: str) -> None:
    """Write a picture of rows as `cache_quality.as_records` makes them, one series per text; the kind by its suffix.

    Each format is named once, in the first series that has it; the reference, which does not diverge, is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for (name, rows), marker in zip(series.items(), "osD^v*" * len(series), strict=False):
        shown = sorted((row["bytes_per_token"], row["kl"], row["format"]) for row in rows if row["kl"])
        axes.plot([size for size, _, _ in shown], [kl for _, kl, _ in shown], marker, label=name, alpha=0.8)
        for size, kl, format in shown:
            if format not in named:
                right = format not in FORMATS  # variants lie close to the format they are of
                axes.annotate(
                    format,
                    (size, kl),
                    textcoords="offset points",
                    xytext=(7 if right else -7, -3),
                    ha="left" if right else "right",
                    fontsize=8,
                )
        named.update(format for _, _, format in shown)
    axes.set_yscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("bytes of cache per token")
    axes.set_ylabel("KL divergence of the next token from bf16's, nats")
    axes.set_title(title)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
