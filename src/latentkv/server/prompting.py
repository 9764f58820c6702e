"""From what a client wrote to token ids, checked against the model's context; and errors told as about a field.

Runs in worker threads, beside the engine: it only reads what never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from latentkv.engine.engine import Engine
from latentkv.engine.text import Tokenizer
from latentkv.errors import CapacityError, LatentKVError, OptionError
from latentkv.server.api_error import APIError

Result = TypeVar("Result")


def told_as(field: str, function: Callable[[], Result]) -> Result:
    """What `function` gives; its errors become 400s about `field`."""
    try:
        return function()
    except CapacityError as error:
        raise APIError(400, str(error), param=field, code="context_length_exceeded") from None
    except OptionError as error:
        named = str(error).partition(":")[0]
        raise APIError(400, str(error), param=named if named.isidentifier() else field) from None
    except LatentKVError as error:
        raise APIError(400, str(error), param=field) from None


def encode(engine: Engine, prompt: str | Sequence[int], *, field: str) -> tuple[int, ...]:
    """The token ids of one prompt."""
    return told_as(field, lambda: engine.encode(prompt))


def output_limit(engine: Engine, prompt_tokens: int, asked: int | None, *, default: int | None, field: str) -> int:
    """Most tokens of output: what was asked for, the default, or all there is room for.

    Raises APIError 400 when there is not as much room as was asked for.
    """
    room = engine.capacity_tokens - prompt_tokens
    if room < 1:
        message = f"the prompt has {prompt_tokens} tokens, and the cache has room for {engine.capacity_tokens - 1}."
        raise APIError(400, message, param="prompt", code="context_length_exceeded")
    if asked is None:
        return min(room, default) if default is not None else room
    if asked > room:
        message = (
            f"{field}: {asked} tokens after a prompt of {prompt_tokens} are {asked + prompt_tokens} in all, and "
            f"{engine.capacity_tokens} is the most. Ask for {room} or fewer."
        )
        raise APIError(400, message, param=field, code="context_length_exceeded")
    return asked


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The engine's tokenizer; APIError 400 for a model without one."""
    if engine.tokenizer is None:
        raise APIError(400, "this model came without a tokenizer: give prompts to /v1/completions as token ids.")
    return engine.tokenizer
