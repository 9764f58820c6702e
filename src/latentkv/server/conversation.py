"""A conversation through the model's own chat template, and a refusal of what the template would leave out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentkv.engine.engine import Engine
from latentkv.errors import LatentKVError
from latentkv.models.tokenizer import Tokenizer
from latentkv.server import prompting
from latentkv.server.api_error import APIError, refused
from latentkv.server.protocol.chat import Message, Tool, ToolCall

Turn = dict[str, Any]


def encode_chat(engine: Engine, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int, ...]:
    """The token ids of a conversation, up to where the assistant's answer begins. Raises APIError 400."""
    tokenizer = prompting.tokenizer_of(engine)

    def ids() -> tuple[int, ...]:
        text = render(engine, messages, tools, add_generation_prompt=True)
        return engine.encode(tokenizer.encode(text, special_tokens=False))

    return prompting.told_as("messages", ids)


def render(engine: Engine, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool) -> str:
    """The text of a conversation.

    Raises APIError 400 for tools, names and calls that do not change what the template writes: the model would never
    see them.
    """
    tokenizer = prompting.tokenizer_of(engine)
    described = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]

    def write(turns: Sequence[Turn], shown: Sequence[Mapping[str, Any]]) -> str:
        more = {"tools": shown} if isinstance(tokenizer, Tokenizer) and shown else {}
        return tokenizer.render_chat(turns, add_generation_prompt=add_generation_prompt, **more)

    turns = [_turn(message, index) for index, message in enumerate(messages)]
    text = write(turns, described)
    if tools and write(turns, ()) == text:
        raise refused("tools", "this model's chat template has no place for them.")
    _check_placed(messages, turns, text, lambda others: write(others, described))
    return text


def _check_placed(
    messages: Sequence[Message], turns: Sequence[Turn], text: str, write: Callable[[Sequence[Turn]], str]
) -> None:
    """Each of these fields has to make a difference somewhere."""
    for field in ("name", "tool_calls"):
        index = next((place for place, message in enumerate(messages) if getattr(message, field)), None)
        if index is None:
            continue
        without = [{key: value for key, value in turn.items() if key != field} for turn in turns]
        try:
            ignored = write(without) == text
        except LatentKVError:
            ignored = False
        if ignored:
            raise refused(f"messages[{index}].{field}", "this model's chat template has no place for it.")


def _turn(message: Message, index: int) -> Turn:
    turn: Turn = {"role": "system" if message.role == "developer" else message.role, "content": message.text()}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        if message.role != "tool":
            raise refused(f"messages[{index}].tool_call_id", "only a message of the role tool has one.")
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise refused(f"messages[{index}].tool_calls", "only the assistant calls tools.")
        turn["tool_calls"] = [_call(call, f"messages[{index}].tool_calls") for call in message.tool_calls]
    return turn


def _call(call: ToolCall, field: str) -> dict[str, Any]:
    """As templates expect it: the arguments as an object."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise APIError(400, f"{field}: arguments are a JSON object, written as a string.", param=field)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
