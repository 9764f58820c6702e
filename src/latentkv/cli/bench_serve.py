"""`latentkv bench serve`: load on a server, ours in another process or any that speaks OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentkv import env
from latentkv.cli.bench_progress import reporting
from latentkv.cli.options import with_options
from latentkv.errors import OptionError, sentence

if TYPE_CHECKING:
    from latentkv.bench.load.client import Target
    from latentkv.bench.load.drive import Load
    from latentkv.bench.load.session import Measured
    from latentkv.bench.load.traffic import Planned

INTERRUPTED = 130
SERVER = (
    click.option("--url", help="A server that runs already, such as http://127.0.0.1:8000."),
    click.option("--api-key", metavar="KEY", help="The key it asks for.  [default: LATENTKV_API_KEY]"),
    click.option("--model-name", metavar="NAME", help="What requests call the model.  [default: the first it lists]"),
    click.option(
        "--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True, help="API."
    ),
    click.option(
        "--timeout", type=click.FloatRange(min=0.1), default=600.0, show_default=True, help="Seconds for one answer."
    ),
    click.option("--no-ignore-eos", is_flag=True, help="Let outputs end early; for servers without `ignore_eos`."),
)
LOADS = (
    click.option("--concurrency", metavar="N,…", help="So many requests at once, one load after another."),
    click.option("--rate", metavar="R,…", help="So many requests a second, at random times (Poisson) instead."),
    click.option("--requests", type=click.IntRange(min=1), help="Requests of each load.  [default: 64]"),
    click.option("--duration", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Or so long."),
    click.option("--warm-up", type=click.IntRange(min=0), default=4, show_default=True, help="Requests not counted."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of lengths, prompts and arrival times."),
)
TRAFFIC = (
    click.option(
        "--lengths",
        default="sharegpt",
        show_default=True,
        metavar="NAME|IN/OUT",
        help="Tokens of prompts and outputs: log-normal like sharegpt or alpaca, or fixed numbers such as 512/64.",
    ),
    click.option("--longest-input", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens."),
    click.option("--longest-output", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens."),
    click.option(
        "--vocabulary",
        type=click.IntRange(min=2),
        default=1000,
        show_default=True,
        help="Prompts are random token ids below this.",
    ),
    click.option(
        "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Prompts of this file's words."
    ),
    click.option(
        "--prompts",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help='Prompts of a JSONL file: {"prompt": …, "max_tokens": …}, over and over.',
    ),
    click.option("--shared-prefix", type=click.IntRange(min=0), default=0, help="Tokens that prompts have in common."),
    click.option(
        "--shared-share", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share of such prompts."
    ),
)
OUTPUT = (
    click.option("--slo", metavar="LIMITS", help="For goodput: ttft=500ms,itl=100ms,e2e=10s or some of them."),
    click.option("--plot", type=click.Path(path_type=Path), help="Draw latency and throughput over load."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    click.option("--records", is_flag=True, help="With --json: every request's own times too."),
)


@click.command(short_help="Load on a server: throughput, latency, goodput.")
@click.argument("model", required=False)
@click.argument("server_options", nargs=-1, type=click.UNPROCESSED)
@with_options(SERVER, LOADS, TRAFFIC, OUTPUT)
def serve(*, model: str | None, server_options: tuple[str, ...], **options: Any) -> int:
    """Measure a server under load: the one at --url, or MODEL served in another process.

    What follows -- goes to `latentkv serve`:  latentkv bench serve MODEL --concurrency 1,8 -- --cache-format int8

    Answers are streamed, and every piece is timed. TTFT runs from when a request was due to its first piece, ITL
    between two pieces, TPOT is the mean per token after the first. Ctrl-C shows what was measured so far.
    """
    if model is not None and model.startswith("-"):  # no MODEL before the --
        server_options, model = (model, *server_options), None
    _check(model, server_options, options)
    import asyncio

    from latentkv.bench.load.session import measure_loads
    from latentkv.bench.load.summary import parse_objective

    loads = _loads(options)
    requests = _requests(options)
    objective = parse_objective(options["slo"]) if options["slo"] else None
    with reporting(lines=False) as report, _server(model, server_options, options) as url:
        target = asyncio.run(_target(url, options))

        def tell(load: Load, what: str, done: int, seconds: float) -> None:
            whole = load.requests or round(done * (load.duration_s or 0) / seconds) if seconds else load.requests or 1
            report(done, max(done, whole), f"{load.name}, {what}")

        measured = asyncio.run(
            measure_loads(
                target,
                loads,
                requests,
                warm_up=options["warm_up"],
                seed=options["seed"],
                objective=objective,
                report=tell,
            )
        )
    _print(target, measured, options)
    return INTERRUPTED if len(measured) < len(loads) or any(one.interrupted for one in measured) else 0


def _check(model: str | None, server_options: tuple[str, ...], options: dict[str, Any]) -> None:
    """Raise OptionError for options that contradict each other, before anything starts."""
    if find_spec("aiohttp") is None:
        remedy = "Install it: pip install 'latentkv[bench]'."
        raise OptionError(sentence("latentkv bench serve", expected="aiohttp", got="none installed", remedy=remedy))
    if options["url"] and (model or server_options):
        raise OptionError(sentence("--url", expected="no MODEL beside it", got="both"))
    if options["concurrency"] and options["rate"]:
        raise OptionError(sentence("load", expected="--concurrency or --rate", got="both"))
    if options["text"] and options["prompts"]:
        raise OptionError(sentence("prompts", expected="--text or --prompts", got="both"))
    if options["records"] and not options["as_json"]:
        raise OptionError(sentence("--records", expected="--json beside it", got="none"))
    if options["plot"]:
        from latentkv.evaluate.plot import check_plot

        check_plot(options["plot"])


def _loads(options: dict[str, Any]) -> list[Load]:
    from latentkv.bench.load.drive import Load

    limits = {"requests": options["requests"], "duration_s": options["duration"]}
    if limits == {"requests": None, "duration_s": None}:
        limits["requests"] = 64
    if options["rate"]:
        return [Load(rate=rate, **limits) for rate in _numbers("--rate", options["rate"], float)]
    return [Load(concurrency=n, **limits) for n in _numbers("--concurrency", options["concurrency"] or "1", int)]


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(0 < number < 1e6 for number in numbers):
        raise OptionError(sentence(name, expected="numbers above 0, separated by commas", got=repr(text)))
    return numbers


def _requests(options: dict[str, Any]) -> Callable[[int], Iterator[Planned]]:
    from latentkv.bench.load.traffic import Traffic, parse_lengths, read_prompts, read_words, repeated

    input, output = parse_lengths(options["lengths"])
    longest = options["longest_output"]
    if options["prompts"]:
        path = options["prompts"]
        read_prompts(path, output=output, longest_output=longest, seed=options["seed"])
        return lambda seed: repeated(read_prompts(path, output=output, longest_output=longest, seed=seed))
    words = read_words(options["text"]) if options["text"] else ()
    if options["endpoint"] == "chat" and not words:
        remedy = "Give --text or --prompts."
        raise OptionError(sentence("--endpoint chat", expected="prompts of text", got="token ids", remedy=remedy))
    return lambda seed: Traffic(
        input=input,
        output=output,
        longest_input=options["longest_input"],
        longest_output=longest,
        vocabulary=options["vocabulary"],
        words=words,
        prefix_tokens=options["shared_prefix"],
        prefix_share=options["shared_share"],
        seed=seed,
    ).requests()


@contextmanager
def _server(model: str | None, server_options: tuple[str, ...], options: dict[str, Any]) -> Iterator[str]:
    if options["url"]:
        yield options["url"]
        return
    from latentkv.bench.load.served import serving

    with serving(model, server_options) as served:
        yield served.url


async def _target(url: str, options: dict[str, Any]) -> Target:
    from latentkv.bench.load.client import Client, Target

    key = options["api_key"] or next(iter(env.api_keys()), None)
    extra = {"temperature": 0} | ({} if options["no_ignore_eos"] else {"ignore_eos": True})
    target = Target(
        url=url,
        model=options["model_name"] or "",
        api_key=key,
        endpoint=options["endpoint"],
        timeout_s=options["timeout"],
        extra=extra,
    )
    if target.model:
        return target
    async with Client(target) as client:
        return target.named(next(iter(await client.models()), "default"))


def _print(target: Target, measured: list[Measured], options: dict[str, Any]) -> None:
    from latentkv.bench.load.session import as_record

    asked = {name: options[name] for name in ("lengths", "seed", "warm_up", "endpoint", "slo", "shared_prefix")}
    record = {
        "url": target.root,
        "model": target.model,
        **asked,
        "loads": [as_record(one, requests=options["records"]) for one in measured],
    }
    if options["plot"] and measured:
        from latentkv.bench.load.plot import draw_loads

        draw_loads(record["loads"], options["plot"], title=f"{target.model}, {options['lengths']} lengths")
    if options["as_json"]:
        click.echo(json.dumps(record, indent=2))
        return
    from latentkv.cli.bench_load_tables import print_loads

    print_loads(record)
