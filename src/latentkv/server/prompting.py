"""From what a client wrote to token ids, checked against the model's context; and errors told as about a field.

Runs in worker threads, beside the engine: it only reads what never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from latentkv.engine.engine import Engine
from latentkv.engine.text import Tokenizer
from latentkv.errors import CapacityError, LatentKVError, OptionError
from latentkv.server.api_error import APIError
from latentkv.server.protocol.sampling import SamplingBody

Result = TypeVar("Result")


def told_as(field: str, function: Callable[[], Result]) -> Result:
    """What `function` gives; its errors become 400s about `field`."""
    try:
        return function()
    except APIError:
        raise
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


def check_token_ids(engine: Engine, field: str, token_ids: Iterable[int]) -> None:
    """Raise APIError 400 for an id beyond the model's vocabulary."""
    most = engine.model.vocab_size - 1
    for token_id in token_ids:
        if token_id > most:
            raise APIError(400, f"{field}: token ids go up to {most}, got {token_id}.", param=field)


def check_sampling(engine: Engine, body: SamplingBody) -> None:
    """Raise APIError 400 for fields about sampling that this model cannot obey."""
    check_token_ids(engine, "stop_token_ids", body.stop_token_ids or ())
    check_token_ids(engine, "logit_bias", map(int, body.logit_bias or ()))
    if body.stop and engine.tokenizer is None:
        raise APIError(400, "stop: this model came without a tokenizer; use stop_token_ids.", param="stop")


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
