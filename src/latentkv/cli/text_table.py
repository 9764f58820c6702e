"""Tables and paragraphs as plain text, for commands that must answer at once: rich takes a tenth of a second."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDEST_COLUMNS = 116
GAP = "   "


def table(headings: Sequence[str], rows: Sequence[Sequence[str] | None], *, left: int) -> str:
    """Aligned columns under `headings`, the first `left` of them to the left; a row of None is a gap between sections.

    Returns lines that each end in a newline, an empty one last.
    """
    filled = [row for row in rows if row is not None]
    widths = [max(len(row[index]) for row in (headings, *filled)) for index in range(len(headings))]
    lines = [_line(headings, widths, left), "─" * (sum(widths) + len(GAP) * (len(widths) - 1))]
    lines += [_line(row, widths, left) if row is not None else "" for row in rows]
    return "".join(f"  {line}".rstrip() + "\n" for line in lines) + "\n"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A name and what it is, one per line, long ones wrapped beside their name."""
    width = max(len(name) for name, _ in pairs)
    lines = []
    for name, text in pairs:
        start = f"  {name:<{width}}{GAP}"
        lines.append(
            textwrap.fill(
                text, WIDEST_COLUMNS, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
            )
        )
    return "\n".join(lines) + "\n\n"


def bullets(sentences: Sequence[str]) -> str:
    """One sentence per bullet, wrapped."""
    wrapped = (
        textwrap.fill(each, WIDEST_COLUMNS, initial_indent="  · ", subsequent_indent="    ") for each in sentences
    )
    return "".join(f"{each}\n" for each in wrapped)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    aligned = (
        cell.ljust(width) if index < left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return GAP.join(aligned)
