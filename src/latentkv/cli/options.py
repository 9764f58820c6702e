"""The options that several commands share, and how they become the engine's own objects. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, FORMATS, PAGE_TOKENS
from latentkv.cache.tiers.options import TierOptions
from latentkv.engine.speculative import Speculation, parse_speculation
from latentkv.errors import OptionError, sentence
from latentkv.planner.units import parse_bytes

if TYPE_CHECKING:
    from latentkv.engine.sampling_params import SamplingParams

NO_TIERS = TierOptions()
Command = TypeVar("Command", bound=Callable[..., Any])
SAMPLING_NAMES = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is loaded and its context cached."""

    dtype: str
    attention: Literal["mla", "gqa"]
    cache_format: str
    page_tokens: int
    activations: Literal["float", "bf16", "auto"] = "float"
    memory_bytes: int | Literal["available", "unlimited"] = "available"
    tiers: TierOptions = NO_TIERS
    cache_tokens: int | None = None
    speculation: Speculation | None = None


SAMPLING = (
    click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest output, in tokens."),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token each time, so the same input gives the same output; above 0 samples.",
    ),
    click.option("--top-k", type=int, default=0, show_default=True, help="Sample among the K likeliest; 0 is off."),
    click.option(
        "--top-p", type=float, default=1.0, show_default=True, help="Sample within this share of probability."
    ),
    click.option(
        "--min-p", type=float, default=0.0, show_default=True, help="Least probability, relative to the best."
    ),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 avoids repetition."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the output before this text; may be repeated."),
)
ACTIVATIONS = click.option(
    "--activations",
    type=click.Choice(["float", "bf16", "auto"]),
    default="float",
    show_default=True,
    help="What linear layers make of their input: bf16 rounds it to bfloat16, auto to int8 where it meets int8 and "
    "int4 weights.",
)
ENGINE = (
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="What weights are held and computed in; auto is float32 where that fits in half of the memory.",
    ),
    click.option(
        "--attention",
        type=click.Choice(["mla", "gqa"]),
        default="mla",
        show_default=True,
        help="mla: a GQA or MHA checkpoint is converted exactly while it loads and runs from the latent cache; "
        "gqa: it runs in its own form.",
    ),
    click.option(
        "--cache-format",
        type=click.Choice(list(FORMATS)),
        default="bf16",
        show_default=True,
        help="How cached rows are stored; fp8 and int8 take 57 % of bf16, int6 46 %, int4 35 % on DeepSeek's latents.",
    ),
    click.option(
        "--page-tokens",
        type=click.Choice([str(size) for size in PAGE_TOKENS]),
        default=str(DEFAULT_PAGE_TOKENS),
        show_default=True,
        help="Tokens in a page of the cache.",
    ),
    ACTIVATIONS,
    click.option(
        "--memory",
        metavar="SIZE",
        default="available",
        show_default=True,
        help="What weights may take: a size such as 8GiB, available (what is free now), or unlimited to try anyway.",
    ),
    click.option(
        "--speculative",
        metavar="off|ngram[:TOKENS]",
        default="off",
        show_default=True,
        help="Guess up to TOKENS tokens at a time where a text repeats itself; the output stays the same.",
    ),
)
POOL = (
    click.option(
        "--cache-tokens",
        type=click.IntRange(min=1),
        help="Longest context, prompt and output together.  [default: 32768, or as many as fit in 2 GiB]",
    ),
)
TIERS = (
    click.option(
        "--host-cache",
        metavar="SIZE",
        help="Memory for pages that leave the cache, such as 2GiB; they come back instead of being computed again.",
    ),
    click.option("--swap-dir", metavar="DIR", help="Folder for pages that find no room there; empty again at the end."),
    click.option("--swap-bytes", metavar="SIZE", default="8GiB", show_default=True, help="Most that it may hold."),
    click.option("--cache-dir", metavar="DIR", help="Folder that keeps all computed pages for the next run."),
    click.option(
        "--cache-dir-bytes",
        metavar="SIZE",
        default="8GiB",
        show_default=True,
        help="Most that it may hold for one model; the longest unused pages go first.",
    ),
)
OUTPUT = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming."),
    click.option("--no-stream", is_flag=True, help="Print the output when it is complete."),
    click.option("--no-stats", is_flag=True, help="Leave out the line with speed and cache size on stderr."),
)


def with_options(*groups: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    """A decorator that adds groups of options to a command, in the order they are given."""

    def decorate(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The request's parameters. Raises OptionError for a value outside its range, before any model is loaded."""
    from latentkv.engine.sampling_params import SamplingParams

    return SamplingParams(**{name: options[name] for name in SAMPLING_NAMES}, stop=tuple(options["stop"]))


def engine_options(options: Mapping[str, Any]) -> EngineOptions:
    """How to load the model, as the command line says."""
    return EngineOptions(
        dtype=options["dtype"],
        attention=options["attention"],
        cache_format=options["cache_format"],
        page_tokens=int(options["page_tokens"]),
        activations=options["activations"],
        memory_bytes=_memory(options["memory"]),
        tiers=tier_options(options),
        cache_tokens=options.get("cache_tokens"),
        speculation=parse_speculation(options["speculative"]),
    )


def tier_options(options: Mapping[str, Any]) -> TierOptions:
    """Where pages go that leave the cache, as the command line says; nowhere for a command without these options."""
    if "host_cache" not in options:
        return NO_TIERS
    return TierOptions(
        host_cache_bytes=parse_bytes(options["host_cache"], name="--host-cache") if options["host_cache"] else 0,
        swap_dir=options["swap_dir"],
        swap_bytes=parse_bytes(options["swap_bytes"], name="--swap-bytes"),
        cache_dir=options["cache_dir"],
        cache_dir_bytes=parse_bytes(options["cache_dir_bytes"], name="--cache-dir-bytes"),
    )


def _memory(text: str) -> int | Literal["available", "unlimited"]:
    if text == "available":
        return "available"
    return "unlimited" if text == "unlimited" else parse_bytes(text, name="--memory")


def checked_prompt(prompt: str) -> str:
    """The prompt itself. Raises OptionError when it is empty or is not text, before any model is loaded."""
    if not prompt.strip():
        raise OptionError(sentence("prompt", expected="some text", got="none"))
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(sentence("prompt", expected="UTF-8 text", got="bytes that are not")) from error
    return prompt
