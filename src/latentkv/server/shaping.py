"""What an answer's text has to be: free, JSON, or tool calls; from response_format, tools and tool_choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from latentkv.engine.sampler import Constraint
from latentkv.models.tokenizer import Tokenizer
from latentkv.server.api_error import APIError, refused
from latentkv.server.grammar import ANY_OBJECT, Grammars
from latentkv.server.protocol.chat import ChatBody, JsonSchemaFormat, NamedTool, TextFormat, Tool
from latentkv.server.tool_reader import ToolReader
from latentkv.server.tool_syntax import ToolSyntax, syntax_of

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Shape:
    """How an answer is kept in form and read.

    constraint: makes the constraint of one choice; None for free text
    tools:      what the template shows the model · syntax: how calls are read; None when there are no calls
    """

    constraint: Callable[[], Constraint] | None = None
    tools: tuple[Tool, ...] = ()
    syntax: ToolSyntax | None = None

    def reader(self) -> ToolReader | None:
        """Reads the calls of one choice."""
        names = {tool.function.name for tool in self.tools}
        return ToolReader(self.syntax, names) if self.syntax is not None else None


def shape_of(body: ChatBody, tokenizer: object, grammars: Grammars) -> Shape:
    """What a request asks for. Raises APIError 400 for what cannot be kept."""
    shape = _tools_shape(body, tokenizer, grammars)
    if body.response_format is not None and not isinstance(body.response_format, TextFormat):
        if shape.syntax is not None:
            raise refused("response_format", "not together with tools; leave one of them out.")
        shape = Shape(_json(body, grammars))
    if shape.constraint is not None:
        _check_alone(body)
    return shape


def _json(body: ChatBody, grammars: Grammars) -> Callable[[], Constraint]:
    if isinstance(body.response_format, JsonSchemaFormat):
        return grammars.json(body.response_format.json_schema.schema_, field="response_format")
    return grammars.json(ANY_OBJECT, field="response_format")


def _tools_shape(body: ChatBody, tokenizer: object, grammars: Grammars) -> Shape:
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none"):
            raise refused("tool_choice", "it needs tools.")
        return Shape()
    if choice == "none":
        return Shape()
    syntax = syntax_of(tokenizer) if isinstance(tokenizer, Tokenizer) else None
    if syntax is None:
        raise refused("tools", "how this model writes tool calls is not known, so they could not be read.")
    tools = tuple(body.tools)
    if choice in (None, "auto"):
        if any(tool.function.strict for tool in tools):
            raise refused("tools", "strict is obeyed only where tool_choice forces a call.")
        return Shape(None, tools, syntax)
    called = _chosen(tools, choice.function.name) if isinstance(choice, NamedTool) else tools
    return Shape(_forced(called, syntax, grammars), tools, syntax)


def _chosen(tools: Sequence[Tool], name: str) -> tuple[Tool, ...]:
    found = tuple(tool for tool in tools if tool.function.name == name)
    if not found:
        raise refused("tool_choice", f"there is no tool {name!r}.")
    return found


def _forced(tools: Sequence[Tool], syntax: ToolSyntax, grammars: Grammars) -> Callable[[], Constraint]:
    forms = []
    for tool in tools:
        begin, end = syntax.forced(tool.function.name)
        forms.append((begin, tool.function.parameters or NO_ARGUMENTS, end))
    return grammars.one_of(forms, field="tools")


def _check_alone(body: ChatBody) -> None:
    """Options that could end a text in the middle of its grammar, or keep it from ending."""
    for name in ("ignore_eos", "min_tokens", "stop", "stop_token_ids"):
        if getattr(body, name):
            raise APIError(400, f"{name}: not together with an enforced format.", param=name)
