"""One /v1/chat/completions request: its choices over the engine, and its answer whole or as a stream."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from latentkv.engine.engine import Engine
from latentkv.engine.output import Output
from latentkv.server import prompting
from latentkv.server.api_error import APIError
from latentkv.server.conversation import encode_chat
from latentkv.server.grammar import Grammars
from latentkv.server.logprobs import chat_logprobs
from latentkv.server.outgoing import Head, Usage
from latentkv.server.protocol.chat import ChatBody
from latentkv.server.service import Ask, Generation
from latentkv.server.shaping import Shape, shape_of
from latentkv.server.tool_reader import ToolReader
from latentkv.server.tool_syntax import Call


@dataclass(slots=True)
class _Choice:
    """One answer as it grows."""

    reader: ToolReader | None
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    def read(self, output: Output) -> Iterator[dict[str, Any]]:
        """The deltas of an output: content, and calls as a whole."""
        if self.reader is None:
            yield from self._deltas(output.text)
            return
        for part in self.reader.push(output.text):
            yield from self._deltas(part)
        if output.finished:
            for part in self.reader.finish():
                yield from self._deltas(part)

    def _deltas(self, part: str | Call) -> Iterator[dict[str, Any]]:
        if isinstance(part, str):
            self.content += part
            if part:
                yield {"content": part}
            return
        function = {"name": part.name, "arguments": part.arguments}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        self.calls.append(call)
        yield {"tool_calls": [{"index": len(self.calls) - 1, **call}]}

    def end(self, reason: str | None) -> None:
        """Take note why the answer ended."""
        self.reason = "tool_calls" if self.calls and reason == "stop" else reason

    def message(self) -> dict[str, Any]:
        """The answer as a message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message |= {"content": self.content or None, "tool_calls": self.calls}
        return message


@dataclass(frozen=True, slots=True)
class Chatting:
    """A checked request: what to ask of the engine and how to answer."""

    body: ChatBody
    engine: Engine
    head: Head
    asks: list[Ask]
    shape: Shape

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when everything is there."""
        usage, choices = self._usage(), self._choices()
        async for index, output in generation.outputs():
            usage.add(output, leads=index == 0)
            choice = choices[index]
            choice.logprobs += chat_logprobs(self.engine.tokenizer, output)
            for _ in choice.read(output):
                pass
            self._end(choice, output, generation, index)
        told = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self.body.logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ]
        return self.head.part(told, usage=usage.json())

    async def events(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        usage, choices = self._usage(), self._choices()
        more = {"usage": None} if self.body.include_usage else {}
        for index in range(len(choices)):
            yield self.head.part([_part(index, {"role": "assistant", "content": ""})], **more)
        async for index, output in generation.outputs():
            usage.add(output, leads=index == 0)
            choice = choices[index]
            deltas = list(choice.read(output))
            self._end(choice, output, generation, index)
            if output.logprobs and not deltas:
                deltas = [{"content": ""}]
            logprobs = self._told(output)
            for delta in deltas:
                yield self.head.part([_part(index, delta, logprobs=logprobs)], **more)
                logprobs = None
            if choice.reason is not None:
                yield self.head.part([_part(index, {}, reason=choice.reason)], **more)
        if self.body.include_usage:
            yield self.head.part([], usage=usage.json())

    def _end(self, choice: _Choice, output: Output, generation: Generation, index: int) -> None:
        if output.finished:
            choice.end(output.finish_reason)
        elif choice.calls and self.body.parallel_tool_calls is False:
            choice.end("stop")
            generation.finish(index)

    def _usage(self) -> Usage:
        return Usage(len(self.asks[0].prompt))

    def _choices(self) -> list[_Choice]:
        return [_Choice(self.shape.reader()) for _ in self.asks]

    def _told(self, output: Output) -> dict[str, Any] | None:
        return {"content": chat_logprobs(self.engine.tokenizer, output), "refusal": None} if output.logprobs else None


def prepare(body: ChatBody, engine: Engine, grammars: Grammars, head: Head) -> Chatting:
    """Check and tokenise a request. Raises APIError 400 naming the field."""
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs: it needs logprobs to be true.", param="top_logprobs")
    prompting.check_sampling(engine, body)
    shape = shape_of(body, engine.tokenizer, grammars)
    prompt = encode_chat(engine, body.messages, shape.tools)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = prompting.output_limit(engine, len(prompt), _asked_limit(body), default=None, field=name)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None

    def ask(choice: int) -> Ask:
        params = body.sampling_params(max_tokens=limit, logprobs=logprobs, choice=choice)
        constraint = shape.constraint() if shape.constraint is not None else None
        return Ask(prompt, params, constraint, body.priority or 0)

    asks = prompting.told_as("messages", lambda: [ask(choice) for choice in range(body.choices)])
    return Chatting(body, engine, head, asks, shape)


def _asked_limit(body: ChatBody) -> int | None:
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise APIError(400, "max_tokens: it contradicts max_completion_tokens.", param="max_tokens")
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _part(
    index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
