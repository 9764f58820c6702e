"""A roofline drawn: operations per byte against the rate they allow, one roof per device, one mark per attention.

Needs matplotlib (`pip install "latentkv[plot]"`), which is imported when a plot is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentkv.errors import OptionError, UnsupportedError, sentence
from latentkv.planner.devices import Device
from latentkv.planner.model import Model
from latentkv.planner.roofline import Ceiling, Load, ceilings
from latentkv.planner.units import short

SUFFIXES = (".png", ".svg")
INTENSITIES = (0.1, 100_000.0)
COLOURS = ("#1f5fa8", "#b5452c", "#2e7d4f", "#7a4fa3", "#8a6d1b", "#444444")
MARKS = {"MLA, latent form": "o", "MLA, head form": "D"}
OTHER_MARKS = "s^v<>P"


def draw_roofline(model: Model, devices: Sequence[Device], load: Load, path: Path, *, format: str = "bf16") -> None:
    """Draw attention of the model and its twins under the roofs of `devices` into `path`, a .png or .svg.

    Raises OptionError for another kind of file or a device without a published rate, UnsupportedError without
    matplotlib.
    """
    if path.suffix not in SUFFIXES:
        raise OptionError(
            sentence("roofline plot", expected=f"a file ending in {' or '.join(SUFFIXES)}", got=str(path))
        )
    figure, axes = _figure()
    rows: tuple[Ceiling, ...] = ()
    for device, colour in zip(devices, COLOURS * len(devices), strict=False):
        rows = ceilings(model, device, load, format=format, weights=None)
        _roof(axes, device, colour)
        _marks(axes, device, rows, colour)
    _name_marks(axes, rows)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=INTENSITIES,
        xlabel="arithmetic intensity of attention: FLOP per byte of cache",
        ylabel="attainable TFLOP/s",
        title=f"{model.name}: attention, {format} cache, new tokens per sequence: {load.queries}",
    )
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError('Plots need matplotlib: pip install "latentkv[plot]".') from error
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def _roof(axes: Any, device: Device, colour: str) -> None:
    precision = device.default_precision
    rate, ridge = device.rate(precision), device.ridge(precision)
    if rate is None or ridge is None:
        raise OptionError(sentence(f"device {device.name}", expected="a published rate to draw", got="none"))
    xs = (INTENSITIES[0], ridge, INTENSITIES[1])
    ys = [min(rate, x * device.bandwidth_bytes_s) / 1e12 for x in xs]
    axes.plot(xs, ys, color=colour, label=f"{device.name}: {rate / 1e12:,.3g} TFLOP/s {precision}, ridge {ridge:.0f}")


def _marks(axes: Any, device: Device, rows: Sequence[Ceiling], colour: str) -> None:
    for index, row in enumerate(rows):
        attained = row.attention.flops / row.attention.seconds(device, device.default_precision) / 1e12
        axes.plot(row.attention.intensity, attained, _mark(row, index), color=colour, markersize=7)


def _name_marks(axes: Any, rows: Sequence[Ceiling]) -> None:
    """The kinds of attention stand at the same intensity under every roof: named once, at the upper edge."""
    for index, row in enumerate(rows):
        axes.axvline(row.attention.intensity, color="#999999", linewidth=0.6, linestyle=":", zorder=0)
        axes.plot(
            [], [], _mark(row, index), color="#666666", label=f"{row.name}: {short(row.attention.intensity)} FLOP/B"
        )


def _mark(row: Ceiling, index: int) -> str:
    return MARKS.get(row.name, OTHER_MARKS[index % len(OTHER_MARKS)])
