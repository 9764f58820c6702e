"""Writes the pages of documentation that are made from code. Run by `make docs`."""

from __future__ import annotations

from pathlib import Path

from claims import claims
from planning import planning

from latentkv.env import VARIABLES

HERE = Path(__file__).parent


def environment() -> str:
    """The page of environment variables, as Markdown."""
    lines = [
        "# Environment variables",
        "",
        "Made from `src/latentkv/env.py` by `make docs`.",
        "",
        "| name | takes | meaning |",
        "|---|---|---|",
    ]
    for variable in VARIABLES:
        takes = variable.takes.replace("|", "\\|")
        lines.append(f"| `{variable.name}` | {takes} | {variable.meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every page."""
    (HERE / "claims.md").write_text(claims(), encoding="utf-8")
    (HERE / "environment.md").write_text(environment(), encoding="utf-8")
    (HERE / "planning.md").write_text(planning(), encoding="utf-8")


if __name__ == "__main__":
    main()
