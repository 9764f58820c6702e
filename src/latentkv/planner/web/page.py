"""Puts the page together: markup, style, scripts and data in one file that needs no network and no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# In the order in which each may use those before it.
SCRIPTS = ("plan.js", "sizes.js", "notes.js", "state.js", "plot.js", "tables.js", "curves.js", "picker.js", "page.js")


def page_html(data: Mapping[str, Any]) -> str:
    """The page with `data` (data.py) in it, as one HTML document."""
    page = _text("page.html")
    for place, text in (
        ("/* style */", _text("page.css")),
        ("/* scripts */", scripts()),
        ("{/* data */}", _inline(data)),
    ):
        before, after = page.split(place)
        page = before + text + after
    return page


def scripts(*names: str) -> str:
    """The page's scripts, or those called `names`, as one."""
    return "\n".join(_text(name) for name in names or SCRIPTS)


def _inline(data: Mapping[str, Any]) -> str:
    """JSON in which nothing ends a script element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _text(name: str) -> str:
    return (HERE / name).read_text("utf-8")
