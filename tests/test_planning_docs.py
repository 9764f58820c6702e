"""The page about planning says what the planner says today."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_planner_computes() -> None:
    page = runpy.run_path(str(DOCS / "planning.py"))["planning"]()
    assert (DOCS / "planning.md").read_text("utf-8") == page, "run `make docs`"
