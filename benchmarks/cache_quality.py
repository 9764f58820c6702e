"""Puts runs of `latentkv eval cache --json` together: the committed record, its plot, and the tables in the docs.

    python benchmarks/cache_quality.py "WikiText-2"=wiki.json "Python's library"=python.json

Several files may be given for one text; a format measured twice counts where it was measured on more tokens, and its
needles where there were more of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "cache_quality.json"
PLOT = ROOT / "docs" / "cache_quality.svg"
PUBLIC = ("bf16", "f16", "f32", "fp8", "int8", "int6", "int4")


def merged(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The record: model, options of each run, and rows by text."""
    texts: dict[str, dict[str, Any]] = {}
    for name, run in runs:
        rows = texts.setdefault(name, {})
        for row in run["formats"]:
            both = (rows.get(row["format"], row), row)
            finer = max(both, key=lambda one: one["tokens"])
            searched = max(both, key=lambda one: one["needles"])
            rows[row["format"]] = finer | {name: searched[name] for name in ("needles", "needles_found")}
    return {
        "model": runs[0][1]["model"],
        "runs": [{"text": name, **run["options"]} for name, run in runs],
        "texts": {name: list(rows.values()) for name, rows in texts.items()},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one text as Markdown."""
    lines = [
        "| format | B/token | tokens | perplexity | KL from bf16, nats | same top token | needles |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["format"] not in PUBLIC, -row["bytes_per_token"], row["format"])):
        kl = f"{row['kl']:.1e} ± {row['kl_error']:.0e}" if row["kl"] else "0"
        needles = f"{row['needles_found']} of {row['needles']}" if row["needles"] else ""
        lines.append(
            f"| `{row['format']}` | {row['bytes_per_token']:,} | {row['tokens']:,} | {row['perplexity']:.3f} | {kl} "
            f"| {row['top1_agreement']:.2%} | {needles} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the record and the plot, print the tables."""
    from latentkv.evaluate.plot import draw_quality

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="TEXT=FILE")
    named = [argument.rsplit("=", 1) for argument in parser.parse_args().runs]
    record = merged([(name, json.loads(Path(file).read_text(encoding="utf-8"))) for name, file in named])
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")
    # float32 lies far to the right of all others and says nothing about them.
    drawn = {name: [row for row in rows if row["format"] != "f32"] for name, rows in record["texts"].items()}
    draw_quality(drawn, PLOT, title="SmolLM2-135M seen as MLA: what a compact cache costs")
    for name, rows in record["texts"].items():
        print(f"{name}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
