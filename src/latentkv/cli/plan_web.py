"""`latentkv plan --web`: the planner as a page in the browser, served on this machine only, or written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentkv.errors import OptionError, sentence

if TYPE_CHECKING:
    from latentkv.planner.model import Model
    from latentkv.planner.plan import Question

DEFAULT_PORT, MOST_PORT = 8426, 65_535
WEB_OPTIONS = (
    click.option("--web", is_flag=True, help="Show it as a page in the browser, where every choice can be changed."),
    click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="With --web: write the page instead."),
    click.option("--port", type=int, help=f"With --web: on 127.0.0.1; 0 takes a free one.  [default: {DEFAULT_PORT}]"),
    click.option("--no-open", is_flag=True, help="With --web: tell the address and open no browser."),
)
# The page's name of what an option sets, where it is the text that was typed.
SAME_TEXT = {
    "memory": "memory",
    "context": "context",
    "users": "users",
    "weights": "weights",
    "tp": "tensor",
    "pp": "pipeline",
    "dp": "data",
    "cp": "context_ranks",
    "page_tokens": "page_tokens",
    "step_tokens": "step_tokens",
    "activations": "activations",
    "reserve": "reserve",
}
ELSEWHERE = ("versus", "explain", "as_json", "as_csv", "plot", "this_machine", "roofline")


def check_web(options: Mapping[str, Any]) -> None:
    """Raises OptionError for options of the page without --web, and for those that the page does not have."""
    if not options["web"]:
        for name, flag in (("out", "--out"), ("port", "--port"), ("no_open", "--no-open")):
            if options[name] not in (None, False):
                raise OptionError(sentence(flag, expected="--web beside it", got="none"))
        return
    for name in ELSEWHERE:
        if options[name]:
            flag = f"--{name.removeprefix('as_').replace('_', '-')}"
            raise OptionError(sentence("--web", expected=f"no {flag} beside it", got="both"))
    if options["port"] is not None and not 0 <= options["port"] <= MOST_PORT:
        raise OptionError(sentence("--port", expected=f"0 to {MOST_PORT}", got=options["port"]))


def show_page(models: Sequence[Model], question: Question, options: Mapping[str, Any], *, given: bool) -> None:
    """Write the page or serve it until Ctrl-C; it opens with the command's choices, or an example if none is `given`.

    Raises OptionError when the port is taken or a device is not known.
    """
    from latentkv.planner.web.data import page_data
    from latentkv.planner.web.page import page_html

    start = _start(models, question, options) if given else {}
    page = page_html(page_data(models, start=start, gqa_groups=question.gqa_groups))
    if options["out"] is not None:
        options["out"].write_text(page, encoding="utf-8")
        click.echo(f"written: {options['out']}", err=True)
        return
    from latentkv.cli.page_server import serve_page

    serve_page(page, DEFAULT_PORT if options["port"] is None else options["port"], open_it=not options["no_open"])


def _start(models: Sequence[Model], question: Question, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen when the page opens, as texts (the names of data.EXAMPLE)."""
    start = {theirs: str(options[own] if options[own] is not None else "") for own, theirs in SAME_TEXT.items()}
    stored = any(model.weights_bytes is not None for model in models)
    start["context"] = start["context"] or str(question.context_tokens)
    start["weights"] = start["weights"] or ("stored" if stored else "bf16")
    chosen: dict[str, Any] = {"formats": list(question.formats)}
    chosen["devices"] = [_device_with_memory(name) for name in options["devices"]]
    if models:
        chosen["models"] = [model.name for model in models]
    return {**start, **chosen}


def _device_with_memory(name: str) -> str:
    from latentkv.planner.devices import find_device

    device = find_device(name)
    if device.memory_bytes is None:
        remedy = "Give --memory instead, as much as is installed."
        raise OptionError(
            sentence("--device", expected="one of fixed memory with --web", got=device.name, remedy=remedy)
        )
    return device.name
