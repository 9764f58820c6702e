"""Plans as JSON and CSV: sizes in bytes, counts as whole numbers, the unit in every name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from latentkv.planner.compare import Comparison
from latentkv.planner.notes import explained
from latentkv.planner.plan import CacheLine, Plan, Serving

CSV_COLUMNS = (
    "model",
    "attention",
    "is_twin",
    "format",
    "elements_per_token",
    "bytes_per_token_and_layer",
    "bytes_per_token",
    "context_tokens",
    "sequence_bytes",
    "ratio_to_own",
)


def json_text(plans: Sequence[Plan], comparisons: Sequence[Comparison]) -> str:
    """One JSON object with everything that was asked."""
    record = {"plans": [_plan(plan) for plan in plans], "comparisons": [_comparison(each) for each in comparisons]}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def csv_text(plans: Sequence[Plan]) -> str:
    """One line per model, attention and format, with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for plan in plans:
        for line in (*plan.cache, *plan.twins):
            extra = {"model": plan.model.name, "context_tokens": plan.question.context_tokens}
            writer.writerow({**asdict(line), **extra, "is_twin": line in plan.twins})
    return stream.getvalue()


def _plan(plan: Plan) -> dict[str, object]:
    model, question = plan.model, plan.question
    return {
        "model": model.name,
        "source": model.source,
        "params_total": model.params_total,
        "params_active": model.params_active,
        "max_context_tokens": model.max_context_tokens,
        "layers": [
            {
                "count": group.count,
                "attention": group.name,
                "window_tokens": group.window_tokens,
                "index_elements": group.index_elements,
                "state_bytes": group.state_bytes,
            }
            for group in model.layers
        ],
        "context_tokens": question.context_tokens,
        "users": question.users,
        "page_tokens": question.deployment.page_tokens,
        "memory_bytes": question.memory_bytes,
        "cache": [_line(line) for line in plan.cache],
        "twins": [_line(line) for line in plan.twins],
        "devices": [_serving(serving) for serving in plan.serving],
        "notes": list(plan.notes),
        "formulas": list(
            explained(
                model,
                format=question.formats[0],
                context_tokens=question.context_tokens,
                page_tokens=question.deployment.page_tokens,
            )
        ),
    }


def _line(line: CacheLine) -> dict[str, object]:
    return asdict(line)


def _serving(serving: Serving) -> dict[str, object]:
    need = {f"{name}_bytes": size for name, size in asdict(serving.need).items()}
    return {**asdict(serving), "need": {**need, "total_bytes": serving.need.total}}


def _comparison(comparison: Comparison) -> dict[str, object]:
    steps = [{**asdict(step), "smaller": step.smaller} for step in comparison.steps]
    return {**asdict(comparison), "steps": steps}
