"""How models write tool calls: the forms that chat templates of today use, found in the template's own text.

hermes     <tool_call>{"name": NAME, "arguments": {...}}</tool_call>          Qwen, Hermes, SmolLM3, MiniCPM
deepseek   <｜tool▁call▁begin｜>[function<｜tool▁sep｜>]NAME ... {...}<｜tool▁call▁end｜>    DeepSeek-V3, R1, V3.1
llama      {"name": NAME, "parameters": {...}} as the whole answer              Llama 3.x
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentkv.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a model wrote; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """One way to write calls.

    begin, end: what surrounds a call in the output; an empty `end` is the end of the output
    wrappers:   texts around all calls, which mean nothing
    forced:     the text before and after the arguments when a call of this name is forced
    parse:      a call from the text between `begin` and `end`; None when it is none
    alone:      a call is the whole output or there is none
    """

    name: str
    begin: str
    end: str
    wrappers: tuple[str, ...]
    forced: Callable[[str], tuple[str, str]]
    parse: Callable[[str], Call | None]
    alone: bool = False


def syntax_of(tokenizer: Tokenizer) -> ToolSyntax | None:
    """The way the model's chat template tells it to write calls; None when it tells none that is known here."""
    template = tokenizer.chat_template or ""
    found = next((syntax for marker, syntax in _MARKERS if marker in template), None)
    if found is None or "<arg_key>" in template or "<function=" in template:
        return None
    # Where the marker is a special token it never shows in the text, and calls could not be told from it.
    mark = tokenizer.token_id(found.begin)
    return found if mark is None or tokenizer.decode([mark]) else None


def _named_json(arguments: str) -> Callable[[str], Call | None]:
    def parse(text: str) -> Call | None:
        value = _object(text)
        if value is None or not isinstance(value.get("name"), str) or not isinstance(value.get(arguments), dict):
            return None
        return Call(value["name"], json.dumps(value[arguments], ensure_ascii=False))

    return parse


_DEEPSEEK_CALL = re.compile(
    r"(?:function<｜tool▁sep｜>)?([\w-]+)(?:<｜tool▁sep｜>|\s*```json\s*)(.*?)(?:```\s*)?", re.DOTALL
)


def _parse_deepseek(text: str) -> Call | None:
    found = _DEEPSEEK_CALL.fullmatch(text.strip())
    value = _object(found[2]) if found is not None else None
    return Call(found[1], json.dumps(value, ensure_ascii=False)) if found is not None and value is not None else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


HERMES = ToolSyntax(
    "hermes",
    "<tool_call>",
    "</tool_call>",
    (),
    lambda name: (f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": ', "}\n</tool_call>"),
    _named_json("arguments"),
)
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
DEEPSEEK_V3 = ToolSyntax(
    "deepseek",
    _CALL_BEGIN,
    _CALL_END,
    (_CALLS_BEGIN, _CALLS_END),
    lambda name: (
        f"{_CALLS_BEGIN}{_CALL_BEGIN}function<｜tool▁sep｜>{name}\n```json\n",
        f"\n```{_CALL_END}{_CALLS_END}",
    ),
    _parse_deepseek,
)
DEEPSEEK_V31 = ToolSyntax(
    "deepseek v3.1",
    _CALL_BEGIN,
    _CALL_END,
    (_CALLS_BEGIN, _CALLS_END),
    lambda name: (f"{_CALLS_BEGIN}{_CALL_BEGIN}{name}<｜tool▁sep｜>", f"{_CALL_END}{_CALLS_END}"),
    _parse_deepseek,
)
LLAMA = ToolSyntax(
    "llama",
    '{"name"',
    "",
    (),
    lambda name: (f'{{"name": {json.dumps(name)}, "parameters": ', "}"),
    lambda text: _named_json("parameters")('{"name"' + text),
    alone=True,
)
_MARKERS = (
    ("<tool_call>", HERMES),
    ("function<｜tool▁sep｜>", DEEPSEEK_V3),
    ("<｜tool▁call▁begin｜>' + tool['type']", DEEPSEEK_V3),
    ("<｜tool▁call▁begin｜>", DEEPSEEK_V31),
    ('"parameters": dictionary of argument name', LLAMA),
)
