"""Pictures of plans: cache against context, and users against context, as PNG, SVG or a page of HTML.

Needs matplotlib, which is imported when a picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from latentkv.errors import OptionError, UnsupportedError, sentence
from latentkv.planner.curves import Curve, cache_curves, merged, user_curves
from latentkv.planner.plan import Plan
from latentkv.planner.units import GIB, KIB, MIB, in_gb_and_gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")
# Colours that people with any colour vision tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B4513")
TWIN_COLOUR = "#444444"
STYLES = ("-", "--", ":", "-.")
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.5, 5.4, 130
MOST_STATED_TOKENS = 1 << 20


def draw_plans(plans: Sequence[Plan], path: Path) -> None:
    """Draw cache against context and, where a memory was given, users against context, into `path`.

    Raises UnsupportedError when matplotlib is missing, OptionError for another kind of file.
    """
    if path.suffix not in SUFFIXES:
        raise OptionError(sentence("plot", expected=f"a file ending in {', '.join(SUFFIXES)}", got=str(path)))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f"plots need matplotlib ({error}): pip install 'latentkv[plot]'.") from error
    panels = 2 if plans[0].question.memory_bytes else 1
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES * panels), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    _draw_cache(axes[0], plans)
    if panels == 2:
        _draw_users(axes[1], plans)
    _save(figure, path, title=", ".join(plan.model.name for plan in plans))


def _draw_cache(axes: Axes, plans: Sequence[Plan]) -> None:
    question = plans[0].question
    curves = cache_curves(
        [plan.model for plan in plans],
        question.formats,
        longest_tokens=_longest(plans),
        page_tokens=question.deployment.page_tokens,
        with_twins=len(plans) == 1,
    )
    _draw_lines(axes, merged(curves))
    axes.set_title("Cache of one sequence", loc="left")
    axes.set_ylabel("bytes (KiB, MiB, GiB: powers of 1,024)")
    axes.yaxis.set_major_formatter(lambda size, _: _binary_size(size))


def _draw_users(axes: Axes, plans: Sequence[Plan]) -> None:
    question = plans[0].question
    memory = question.memory_bytes or 0
    deployment = plans[0].serving[0]
    curves = [
        curve
        for plan in plans
        for curve in user_curves(
            [plan.model],
            question.formats,
            plan.deployment,
            memory_bytes=memory,
            longest_tokens=_longest(plans),
        )
        if any(curve.values)
    ]
    if not curves:
        axes.text(0.5, 0.5, "the weights alone do not fit", transform=axes.transAxes, ha="center")
    _draw_lines(axes, merged(curves))
    axes.set_title(
        f"Users that fit: {deployment.parallel}, {in_gb_and_gib(memory)} each, weights {deployment.weights}", loc="left"
    )
    axes.set_ylabel("users")
    axes.yaxis.set_major_formatter(lambda users, _: f"{users:,.0f}" if users >= 1 else "")


def _draw_lines(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, (colour, style) in zip(curves, _looks(curves), strict=True):
        points = [(tokens, value) for tokens, value in zip(curve.contexts, curve.values, strict=True) if value]
        tokens, values = [point[0] for point in points], [point[1] for point in points]
        axes.plot(tokens, values, color=colour, linestyle=style, linewidth=1.8, label=curve.label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: _short_tokens(tokens))
    axes.set_xlabel("context, tokens (k = 1,024)")
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if curves:
        axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _looks(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    """Colour and style of each line: one colour per model and style per format; of one model a colour per format."""
    models = list(dict.fromkeys(curve.of for curve in curves if not curve.twin))
    twins = list(dict.fromkeys(curve.of for curve in curves if curve.twin))
    formats = list(dict.fromkeys(curve.format for curve in curves if not curve.twin))
    looks = []
    for curve in curves:
        if curve.twin:
            looks.append((TWIN_COLOUR, STYLES[1:][twins.index(curve.of) % 3]))
        elif len(models) == 1:
            looks.append((COLOURS[formats.index(curve.format) % len(COLOURS)], STYLES[0]))
        else:
            colour = COLOURS[models.index(curve.of) % len(COLOURS)]
            looks.append((colour, STYLES[formats.index(curve.format) % len(STYLES)]))
    return looks


def _longest(plans: Sequence[Plan]) -> int:
    stated = [plan.model.max_context_tokens or 0 for plan in plans]
    return max(min(max(stated), MOST_STATED_TOKENS), plans[0].question.context_tokens)


def _short_tokens(tokens: float) -> str:
    if tokens >= MIB:
        return f"{tokens / MIB:g}M"
    return f"{tokens / KIB:g}k" if tokens >= KIB else f"{tokens:g}"


def _binary_size(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:,g} {name}"
    return f"{size:g} B"


def _save(figure: Figure, path: Path, *, title: str) -> None:
    if path.suffix != ".html":
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        return
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    picture = drawing.getvalue()
    picture = picture[picture.index("<svg") :]
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        "<style>body { margin: 2rem; font-family: sans-serif; } svg { max-width: 100%; height: auto; }</style>\n"
        f"<h1>{escape(title)}</h1>\n{picture}</html>\n"
    )
    path.write_text(page, encoding="utf-8")
