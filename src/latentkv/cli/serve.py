"""`latentkv serve`: an OpenAI-compatible HTTP server around one model."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from latentkv import env
from latentkv.cli.backend_options import BACKEND, BREAKER, make_guard
from latentkv.cli.options import ENGINE, TIERS, engine_options, with_options
from latentkv.cli.running import load_as
from latentkv.errors import OptionError, sentence
from latentkv.planner.units import parse_bytes

if TYPE_CHECKING:
    from latentkv.backends.guard import Guard
    from latentkv.engine.engine import Engine
    from latentkv.server.options import ServerOptions

NEEDED = ("fastapi", "llguidance", "prometheus_client", "structlog", "uvicorn")
DEFAULT_BATCH_TOKENS = 512

ADDRESS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."),
    click.option("--model-name", multiple=True, metavar="NAME", help="What requests call the model; may be repeated."),
)
KEYS = (
    click.option(
        "--api-key",
        multiple=True,
        metavar="KEY",
        help="A key that clients must send; may be repeated.  [LATENTKV_API_KEY]",
    ),
    click.option(
        "--admin-key", multiple=True, metavar="KEY", help="A key for /admin; may be repeated.  [LATENTKV_ADMIN_KEY]"
    ),
)
LIMITS = (
    click.option("--max-queue", type=int, default=256, show_default=True, help="Requests that may wait; then 429."),
    click.option("--max-body", metavar="SIZE", default="4MiB", show_default=True, help="Longest body; then 413."),
    click.option(
        "--request-timeout",
        type=float,
        default=600.0,
        show_default=True,
        help="Seconds for one request; 0 for no limit.",
    ),
    click.option(
        "--shutdown-timeout",
        type=float,
        default=30.0,
        show_default=True,
        help="Seconds for requests to finish at the end.",
    ),
)
BATCHING = (
    click.option(
        "--cache-tokens", type=int, help="Tokens the cache holds for all requests.  [default: 32768, or 2 GiB of them]"
    ),
    click.option(
        "--max-batch-tokens",
        type=int,
        default=DEFAULT_BATCH_TOKENS,
        show_default=True,
        help="Most tokens computed in one step: a bound on the wait between two tokens of a request.",
    ),
    click.option("--max-batch-sequences", type=int, default=64, show_default=True, help="Most requests in one step."),
    click.option("--no-prefix-cache", is_flag=True, help="Compute every prompt from its beginning."),
)
LOGS = (
    click.option("--log-json", is_flag=True, help="Write logs as one JSON object a line."),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="Least important lines to write.",
    ),
)


@click.command(short_help="Serve a model over HTTP, as OpenAI's API.")
@click.argument("model", required=False)
@with_options(ADDRESS, KEYS, LIMITS, BATCHING, ENGINE, TIERS, BACKEND, BREAKER, LOGS)
def serve(*, model: str | None, **options: Any) -> None:
    """Serve MODEL: a folder, a .gguf file, a hub id, or nothing for the default model, SmolLM2-135M-Instruct.

    Any OpenAI client works with base_url http://HOST:PORT/v1. /docs shows all routes, /metrics what Prometheus reads.
    The first Ctrl-C or SIGTERM lets running requests finish, the second one ends the server at once.
    """
    _check_installed()
    settings = _server_options(model, options)
    from latentkv.server import logs, run

    guard = make_guard(options)
    listening = run.listen(options["host"], options["port"])
    url = _url(options["host"], listening)
    logs.configure(json=options["log_json"], level=options["log_level"])
    click.echo(f"latentkv: loading {settings.model_names[0]}; listening on {url}", err=True)
    run.run(
        lambda: _load(model, options, guard),
        settings,
        listening,
        announce=lambda: click.echo(f"latentkv: ready on {url}/v1, Ctrl-C ends it", err=True),
        guard=guard,
    )


def parts_of(arguments: Sequence[str]) -> tuple[Callable[[], Engine], ServerOptions, Guard]:
    """What `latentkv serve ARGUMENTS` would run, for others to run it: the engine's loader, options and guard.

    Raises click's UsageError and OptionError, as the command line does.
    """
    _check_installed()
    options = dict(serve.make_context("latentkv serve", list(arguments)).params)
    model = options.pop("model")
    guard = make_guard(options)
    return (lambda: _load(model, options, guard)), _server_options(model, options), guard


def _check_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        remedy = "Install the server's extra: pip install 'latentkv[serve]'."
        raise OptionError(sentence("latentkv serve", expected="its packages", got=f"no {missing[0]}", remedy=remedy))


def _server_options(model: str | None, options: dict[str, Any]) -> ServerOptions:
    from latentkv.server.options import ServerOptions

    return ServerOptions(
        model_names=options["model_name"] or (_name_of(model),),
        api_keys=(*options["api_key"], *env.api_keys()),
        admin_keys=(*options["admin_key"], *env.admin_keys()),
        max_queue=options["max_queue"],
        max_body_bytes=parse_bytes(options["max_body"], name="--max-body"),
        request_timeout_s=options["request_timeout"],
        shutdown_timeout_s=options["shutdown_timeout"],
    )


def _name_of(model: str | None) -> str:
    """A hub id as it is, the last part of a path, or the default model's name."""
    if model is None:
        return "SmolLM2-135M-Instruct"
    from pathlib import Path

    path = Path(model)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else model


def _load(model: str | None, options: dict[str, Any], guard: Guard) -> Engine:
    """Load the model; called in the engine's thread."""
    from latentkv.engine.engine import Engine

    how = engine_options(options)
    loaded = load_as(how, model, guard=guard)
    return Engine(
        loaded.model,
        loaded.tokenizer,
        cache_format=how.cache_format,
        page_tokens=how.page_tokens,
        cache_tokens=options["cache_tokens"],
        max_batch_tokens=options["max_batch_tokens"],
        max_batch_sequences=options["max_batch_sequences"],
        prefix_cache=not options["no_prefix_cache"],
        speculation=how.speculation,
        **asdict(how.tiers),
    )


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
