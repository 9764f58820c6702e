"""The page of claims says what the ledger computes today."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_ledger_computes() -> None:
    page = runpy.run_path(str(DOCS / "claims.py"))["claims"]()
    assert (DOCS / "claims.md").read_text("utf-8") == page, "run `make docs`"
