"""Renders a conversation with a model's own Jinja template, under the conventions that templates are written for.

A template comes with a checkpoint and is not trusted: it runs in Jinja's immutable sandbox and reads no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from latentkv.errors import TokenizerError

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template; `special_tokens` such as bos_token and eos_token are variables in it.

    Raises TokenizerError when the template cannot be compiled or rendered.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], origin: str) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._origin = origin
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TokenizerError(f"{origin}: the chat template cannot be read: {_reason(error)}.") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a conversation: messages with a "role" and a "content" each.

        tools: {"type": "function", "function": {"name", "description", "parameters"}}, for templates that show them
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=None,
                **self.special_tokens,
            )
        # A template is a program: it fails with whatever its expressions raise, such as KeyError or TypeError.
        except Exception as error:
            raise TokenizerError(
                f"{self._origin}: the chat template does not accept this conversation: {_reason(error)}."
            ) from None


class _Generation(Extension):
    """`{% generation %}` marks assistant text for training; for rendering it is nothing but its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
