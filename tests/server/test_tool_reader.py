"""Tool calls in text that comes in any pieces."""

from __future__ import annotations

import pytest

from latentkv.server.tool_reader import ToolReader
from latentkv.server.tool_syntax import DEEPSEEK_V3, DEEPSEEK_V31, HERMES, LLAMA, Call, ToolSyntax

UNKNOWN = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
ADD = '{"a": 1, "b": [2, "}"]}'
CASES = [
    (HERMES, "hello", ["hello"]),
    (HERMES, "a <tool and <b>", ["a <tool and <b>"]),
    (HERMES, f'<tool_call>\n{{"name": "add", "arguments": {ADD}}}\n</tool_call>', [Call("add", ADD)]),
    (
        HERMES,
        f'Let me see.\n<tool_call>{{"name": "add", "arguments": {ADD}}}</tool_call>\n'
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n',
        ["Let me see.", Call("add", ADD), Call("now", "{}")],
    ),
    (HERMES, "<tool_call>not JSON</tool_call>", ["<tool_call>not JSON</tool_call>"]),
    (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>'],
    ),
    (HERMES, '<tool_call>{"name": "add"', ['<tool_call>{"name": "add"']),
    (HERMES, " \n ", [" \n "]),
    (
        DEEPSEEK_V3,
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{ADD}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        [Call("add", ADD)],
    ),
    (
        DEEPSEEK_V31,
        f"Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{ADD}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["Well.", Call("add", ADD)],
    ),
    (LLAMA, f'{{"name": "add", "parameters": {ADD}}}', [Call("add", ADD)]),
    (LLAMA, 'as in {"name": "add", "parameters": {}}', ['as in {"name": "add", "parameters": {}}']),
    (LLAMA, '{"other": 1}', ['{"other": 1}']),
]


def read(syntax: ToolSyntax, pieces: list[str]) -> list[str | Call]:
    reader = ToolReader(syntax, {"add", "now"})
    found = [part for piece in pieces for part in reader.push(piece)]
    found += list(reader.finish())
    joined: list[str | Call] = []
    for part in found:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("syntax", "text", "expected"), CASES, ids=[text[:20] for _, text, _ in CASES])
def test_calls_in_pieces(syntax: ToolSyntax, text: str, expected: list[str | Call], size: int) -> None:
    assert read(syntax, [text[at : at + size] for at in range(0, len(text), size)]) == expected


@pytest.mark.parametrize("syntax", [HERMES, DEEPSEEK_V3, DEEPSEEK_V31, LLAMA], ids=lambda syntax: syntax.name)
def test_what_is_forced_is_read(syntax: ToolSyntax) -> None:
    begin, end = syntax.forced("add")
    assert read(syntax, [begin + ADD + end]) == [Call("add", ADD)]
