"""`latentkv plan`: what a cache costs, what a device holds of it, and the same questions the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, FORMATS, PAGE_TOKENS
from latentkv.cli.plan_speed import SPEED_OPTIONS, wants_speed
from latentkv.cli.plan_web import WEB_OPTIONS, check_web, show_page
from latentkv.errors import OptionError, sentence

if TYPE_CHECKING:
    from latentkv.planner.compare import Comparison
    from latentkv.planner.model import Model
    from latentkv.planner.plan import Plan, Question

Command = TypeVar("Command", bound=Callable[..., Any])
COMPARED_CONTEXT_TOKENS = 32_768
FALLBACK_CONTEXT_TOKENS = 4096
PLOT_SUFFIXES = (".png", ".svg", ".html")

CACHE_OPTIONS = (
    click.option(
        "--context",
        metavar="TOKENS",
        help="Of each user: 32768 or 32k (k is 1,024).  [default: the longest; 32k of several models]",
    ),
    click.option("--users", type=int, default=1, show_default=True, help="Sequences served at once."),
    click.option(
        "--format",
        "formats",
        multiple=True,
        metavar="FORMAT",
        help=f"Of the cache: {', '.join(FORMATS)}; may be given again.  [default: all; of several models bf16]",
    ),
    click.option(
        "--page-tokens",
        type=click.Choice([str(size) for size in PAGE_TOKENS]),
        default=str(DEFAULT_PAGE_TOKENS),
        show_default=True,
        help="Tokens in a page; a sequence fills whole pages.",
    ),
    click.option(
        "--gqa", "gqa_groups", type=int, default=8, show_default=True, help="KV heads of the GQA compared with."
    ),
)
DEVICE_OPTIONS = (
    click.option("--memory", metavar="SIZE", help="Of one device, such as 80GiB or 80GB: how much fits?"),
    click.option(
        "--weights",
        metavar="FORMAT",
        help="f32, bf16, f16, fp8, int8, int4, stored, none, or a size.  [default: stored, else bf16]",
    ),
    click.option("--tp", type=int, default=1, help="Tensor parallelism: heads and matrices are split."),
    click.option("--pp", type=int, default=1, help="Pipeline parallelism: layers are split."),
    click.option("--dp", type=int, default=1, help="Data-parallel attention: users are split, experts stay split."),
    click.option(
        "--cp", type=int, default=1, help="Context parallelism: tokens are split over so many of the TP ranks."
    ),
    click.option("--step-tokens", type=int, default=2048, show_default=True, help="New tokens computed in one step."),
    click.option("--activations", metavar="SIZE", help="Measured need of a step, instead of the estimate."),
    click.option("--reserve", metavar="SIZE", help="Keep so much of each device free."),
)
OUTPUT_OPTIONS = (
    click.option("--versus", metavar="MODEL", help="Compare the cache with another model's, step by step."),
    click.option("--versus-format", default="bf16", show_default=True, metavar="FORMAT", help="Of that other cache."),
    click.option("--hub", is_flag=True, help="Fetch configurations that the catalogue lacks."),
    click.option("--explain", is_flag=True, help="Show the formulas with the numbers in them."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables."),
    click.option("--csv", "as_csv", is_flag=True, help="Print one line of CSV per model, attention and format."),
    click.option(
        "--plot",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Draw it: .png, .svg or .html (needs matplotlib).",
    ),
)


def _all_options(command: Command) -> Command:
    for option in reversed((*CACHE_OPTIONS, *DEVICE_OPTIONS, *SPEED_OPTIONS, *OUTPUT_OPTIONS, *WEB_OPTIONS)):
        command = option(command)
    return command


@click.command(short_help="What a cache costs and what a device holds.")
@click.argument("models", nargs=-1, metavar="MODEL...")
@_all_options
def plan(models: tuple[str, ...], **options: Any) -> None:
    """Show what the cache of each MODEL costs per token and at a context, and how much of it a device holds.

    MODEL is a name of the catalogue (`latentkv catalog list`), a config.json, a folder or a .gguf file. Nothing is
    loaded and, unless --hub is given, nothing is fetched. Several models make one table. With --memory the questions
    turn round: how many users have this context, and how long a context do so many users have. With --device or
    --this-machine it is told how fast that can be. With --web all of it is a page in the browser.
    """
    from latentkv.cli.resolve_model import resolve_model
    from latentkv.planner.plan import make_plan

    _check_output(models, options)
    found = [resolve_model(name, hub=options["hub"]) for name in models]
    other = resolve_model(options["versus"], hub=options["hub"]) if options["versus"] else None
    question = _question(found, options)
    if options["web"]:
        show_page(found, question, options, given=_anything_given())
        return
    plans = [make_plan(model, question) for model in found]
    comparisons = _comparisons(plans, other, options) if other is not None else []
    text = _text(plans, comparisons, options)
    click.echo(_with_speed(text, found, question, options) if wants_speed(options) else text, nl=False)
    if options["plot"] is not None:
        from latentkv.planner.cache_plots import draw_plans

        draw_plans(plans, options["plot"])
        click.echo(f"drawn: {options['plot']}", err=True)


def _anything_given() -> bool:
    """Whether the command line asks for anything besides --web itself."""
    context = click.get_current_context()
    given = (name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE)
    return bool(set(given) - {"web", "out", "port", "no_open"})


def _check_output(models: tuple[str, ...], options: dict[str, Any]) -> None:
    if not models and not options["web"]:
        raise click.UsageError("Missing argument 'MODEL...'.", click.get_current_context())
    check_web(options)
    if options["as_json"] and options["as_csv"]:
        raise OptionError(sentence("--json and --csv", expected="one of them", got="both"))
    if options["as_csv"] and wants_speed(options):
        raise OptionError(sentence("--csv", expected="no --device and no --this-machine beside it", got="one"))
    plot = options["plot"]
    if plot is not None and plot.suffix not in PLOT_SUFFIXES:
        raise OptionError(sentence("--plot", expected=f"a file ending in {', '.join(PLOT_SUFFIXES)}", got=str(plot)))


def _question(models: Sequence[Model], options: dict[str, Any]) -> Question:
    from latentkv.planner.memory import Deployment
    from latentkv.planner.parallel import Parallel
    from latentkv.planner.plan import Question
    from latentkv.planner.units import parse_bytes, parse_tokens

    def size(name: str) -> int | None:
        return parse_bytes(options[name], name=f"--{name}") if options[name] else None

    formats = options["formats"] or (("bf16",) if len(models) > 1 else ("bf16", *(f for f in FORMATS if f != "bf16")))
    return Question(
        context_tokens=parse_tokens(options["context"], name="--context") if options["context"] else _longest(models),
        users=options["users"],
        formats=tuple(dict.fromkeys(formats)),
        memory_bytes=size("memory"),
        weights=options["weights"],
        gqa_groups=options["gqa_groups"],
        deployment=Deployment(
            page_tokens=int(options["page_tokens"]),
            parallel=Parallel(tensor=options["tp"], pipeline=options["pp"], data=options["dp"], context=options["cp"]),
            step_tokens=options["step_tokens"],
            activation_bytes=size("activations"),
            reserve_bytes=size("reserve") or 0,
        ),
    )


def _longest(models: Sequence[Model]) -> int:
    if len(models) != 1:
        return COMPARED_CONTEXT_TOKENS
    return models[0].max_context_tokens or FALLBACK_CONTEXT_TOKENS


def _comparisons(plans: Sequence[Plan], other: Model, options: dict[str, Any]) -> list[Comparison]:
    from latentkv.planner.compare import compare

    formats = options["formats"] or ("bf16",)
    return [
        compare(plan.model, other, format=format, other_format=options["versus_format"])
        for plan in plans
        for format in formats
    ]


def _text(plans: Sequence[Plan], comparisons: Sequence[Comparison], options: dict[str, Any]) -> str:
    if options["as_json"] or options["as_csv"]:
        from latentkv.cli.plan_records import csv_text, json_text

        return json_text(plans, comparisons) if options["as_json"] else csv_text(plans)
    from latentkv.cli.plan_tables import plans_text

    return plans_text(plans, comparisons, explain=options["explain"])


def _with_speed(text: str, models: Sequence[Model], question: Question, options: dict[str, Any]) -> str:
    """The plan with ceilings and predictions: tables after its tables, or "speed" in its JSON object."""
    from latentkv.cli.plan_speed import draw, speed_records, speed_text
    from latentkv.planner.roofline import Load

    weights = None if question.weights == "none" else question.weights or "bf16"
    asked = {**options, "format": question.formats[0], "weights": weights}
    load = Load(batch=question.users, context_tokens=question.context_tokens, queries=options["queries"])
    if options["as_json"]:
        whole = {**json.loads(text), "speed": speed_records(models, load, asked)}
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    else:
        text += speed_text(models, load, asked)
    if options["roofline"] is not None:
        draw(models, load, asked)
        click.echo(f"drawn: {options['roofline']}", err=True)
    return text
