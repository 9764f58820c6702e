"""Plans as people read them: tables of sizes with their units, and the sentences that belong to them."""

from __future__ import annotations

from collections.abc import Sequence

from latentkv.cli.text_table import bullets, facts, table
from latentkv.planner.compare import Comparison
from latentkv.planner.notes import explained
from latentkv.planner.plan import CacheLine, Plan, Serving
from latentkv.planner.units import GB, GIB, in_gb_and_gib, short


def plans_text(plans: Sequence[Plan], comparisons: Sequence[Comparison], *, explain: bool) -> str:
    """All plans, one model in full or several in one table, then comparisons, notes and formulas."""
    parts = [_one(plans[0])] if len(plans) == 1 else [_several(plans)]
    parts += [_comparison(comparison) for comparison in comparisons]
    for plan in plans:
        sentences = (*plan.notes, *(_formulas(plan) if explain else ()))
        if sentences:
            parts.append((f"{plan.model.name}\n" if len(plans) > 1 else "") + bullets(sentences))
    return "".join(parts)


def _one(plan: Plan) -> str:
    devices = _devices(plan) if plan.serving else ""
    return f"{plan.model.name}\n\n{_facts(plan)}{_cache(plan)}{devices}"


def _several(plans: Sequence[Plan]) -> str:
    question = plans[0].question
    first = plans[0].cache[0].sequence_bytes
    rows = [
        (
            plan.model.name,
            line.attention,
            line.format,
            f"{line.elements_per_token:,}",
            f"{line.bytes_per_token:,}",
            *_gb_and_gib(line.sequence_bytes),
            f"{line.sequence_bytes / first:.2f}",
        )
        for plan in plans
        for line in plan.cache
    ]
    headings = ("model", "cached", "format", "elements/token", "B/token", "GB", "GiB", "x first")
    title = f"cache of one sequence, context of {question.context_tokens:,} tokens\n\n"
    return title + table(headings, rows, left=3) + (_capacities(plans) if question.memory_bytes else "")


def _capacities(plans: Sequence[Plan]) -> str:
    """What devices of the given memory hold of each model, in one table."""
    rows = [(plan.model.name, *_device_cells(plan, serving)) for plan in plans for serving in plan.serving]
    return f"{_devices_title(plans[0])}\n\n" + table(("model", *_device_headings(plans[0])), rows, left=3)


def _facts(plan: Plan) -> str:
    model = plan.model
    pairs = [("layers", ", ".join(f"{group.count} {group.name}" for group in model.layers))]
    if model.params_total is not None:
        mixture = model.params_active not in (None, model.params_total)
        active = f", {model.params_active:,} active per token" if mixture else ""
        pairs.append(("parameters", f"{model.params_total:,}{active}"))
    if model.max_context_tokens is not None:
        pairs.append(("longest context", f"{model.max_context_tokens:,} tokens"))
    pairs.append(("facts from", model.source))
    return facts(pairs)


def _cache(plan: Plan) -> str:
    question = plan.question
    rows: list[Sequence[str] | None] = [_cache_cells(line) for line in plan.cache]
    if plan.twins:
        rows += [None, *(_cache_cells(line) for line in plan.twins)]
    headings = ("attention", "format", "elements/token", "B/token/layer", "B/token", "GB", "GiB", "x own")
    title = (
        f"cache of one sequence, context of {question.context_tokens:,} tokens "
        f"in pages of {question.deployment.page_tokens}\n\n"
    )
    return title + table(headings, rows, left=2)


def _cache_cells(line: CacheLine) -> tuple[str, ...]:
    row = line.bytes_per_token_and_layer
    return (
        line.attention,
        line.format,
        f"{line.elements_per_token:,}",
        f"{row:,}" if row is not None else "differs",
        f"{line.bytes_per_token:,}",
        *_gb_and_gib(line.sequence_bytes),
        f"{line.ratio_to_own:.2f}",
    )


def _devices(plan: Plan) -> str:
    asked = len(plan.question.formats)
    cells = [_device_cells(plan, serving) for serving in plan.serving]
    rows: list[Sequence[str] | None] = [*cells[:asked], *((None, *cells[asked:]) if cells[asked:] else ())]
    return f"{_devices_title(plan)}\n\n" + table(_device_headings(plan), rows, left=2)


def _devices_title(plan: Plan) -> str:
    question = plan.question
    memory = f" of {in_gb_and_gib(question.memory_bytes)}" if question.memory_bytes else ""
    users = "1 user" if question.users == 1 else f"{question.users:,} users"
    return (
        f"devices{memory}: {users} x {question.context_tokens:,} tokens, weights {plan.serving[0].weights}; "
        "the fullest device, in GiB"
    )


def _device_headings(plan: Plan) -> tuple[str, ...]:
    question = plan.question
    reverse: tuple[str, ...] = ("total GB",)
    if question.memory_bytes:
        reverse = ("tokens in all", f"users of {question.context_tokens:,}", f"context for {question.users:,}")
    return ("served by", "format", "B/token", "weights", "step", "cache", "total", *reverse)


def _device_cells(plan: Plan, serving: Serving) -> tuple[str, ...]:
    need = serving.need
    step = need.activations + need.workspace + need.reserve
    sizes = (f"{size / GIB:,.2f}" for size in (need.weights, step, need.cache, need.total))
    cells = (serving.parallel, serving.format, f"{serving.device_bytes_per_token:,}", *sizes)
    if plan.question.memory_bytes is None:
        return (*cells, f"{need.total / GB:,.2f}")
    answers = (serving.most_tokens, serving.most_users, serving.longest_tokens)
    return (*cells, *("any" if answer is None else f"{answer:,}" if answer else "none" for answer in answers))


def _comparison(comparison: Comparison) -> str:
    rows = [
        (step.label, f"{step.bytes_per_token:,}", f"{100 * step.smaller:.2f} %", f"{1 / step.share:.2f} x")
        for step in comparison.steps
    ]
    title = (
        f"{comparison.model} ({comparison.format}) against {comparison.other} ({comparison.other_format}: "
        f"{comparison.other_bytes_per_token:,} B/token)\n\n"
    )
    return title + table(("counted", "B/token", "smaller by", "times smaller"), rows, left=1)


def _formulas(plan: Plan) -> tuple[str, ...]:
    question = plan.question
    return explained(
        plan.model,
        format=question.formats[0],
        context_tokens=question.context_tokens,
        page_tokens=question.deployment.page_tokens,
    )


def _gb_and_gib(size_bytes: int) -> tuple[str, str]:
    return short(size_bytes / GB), short(size_bytes / GIB)
