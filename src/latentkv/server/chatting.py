"""One /v1/chat/completions request: its choices over the engine, and its answer whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from latentkv.engine.engine import Engine
from latentkv.engine.output import Output
from latentkv.server import prompting
from latentkv.server.api_error import APIError
from latentkv.server.logprobs import chat_logprobs
from latentkv.server.outgoing import Head, Usage
from latentkv.server.protocol.chat import ChatBody
from latentkv.server.service import Ask, Generation


@dataclass(frozen=True, slots=True)
class Chatting:
    """A checked request: what to ask of the engine and how to answer."""

    body: ChatBody
    engine: Engine
    head: Head
    asks: list[Ask]

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when everything is there."""
        usage = self._usage()
        texts = [""] * len(self.asks)
        reasons: list[str | None] = [None] * len(self.asks)
        logprobs: list[list[dict[str, Any]]] = [[] for _ in self.asks]
        async for index, output in generation.outputs():
            usage.add(output, leads=index == 0)
            texts[index] += output.text
            reasons[index] = output.finish_reason
            logprobs[index] += chat_logprobs(self.engine.tokenizer, output)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": texts[index], "refusal": None},
                "logprobs": {"content": logprobs[index], "refusal": None} if self.body.logprobs else None,
                "finish_reason": reasons[index],
            }
            for index in range(len(self.asks))
        ]
        return self.head.part(choices, usage=usage.json())

    async def events(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        usage = self._usage()
        more = {"usage": None} if self.body.include_usage else {}
        for index in range(len(self.asks)):
            yield self.head.part([_delta(index, {"role": "assistant", "content": ""})], **more)
        async for index, output in generation.outputs():
            usage.add(output, leads=index == 0)
            if output.text or output.logprobs:
                delta = {"content": output.text}
                yield self.head.part([_delta(index, delta, logprobs=self._told(output))], **more)
            if output.finished:
                yield self.head.part([_delta(index, {}, reason=output.finish_reason)], **more)
        if self.body.include_usage:
            yield self.head.part([], usage=usage.json())

    def _usage(self) -> Usage:
        return Usage(len(self.asks[0].prompt))

    def _told(self, output: Output) -> dict[str, Any] | None:
        return {"content": chat_logprobs(self.engine.tokenizer, output), "refusal": None} if output.logprobs else None


def prepare(body: ChatBody, engine: Engine, head: Head) -> Chatting:
    """Check and tokenise a request. Raises APIError 400 naming the field."""
    if body.top_logprobs is not None and not body.logprobs:
        raise APIError(400, "top_logprobs: it needs logprobs to be true.", param="top_logprobs")
    prompt = prompting.encode_chat(engine, body.messages, body.tools or ())
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = prompting.output_limit(engine, len(prompt), _asked_limit(body), default=None, field=field)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None

    def ask(choice: int) -> Ask:
        return Ask(prompt, body.sampling_params(max_tokens=limit, logprobs=logprobs, choice=choice))

    asks = prompting.told_as("messages", lambda: [ask(choice) for choice in range(body.choices)])
    return Chatting(body, engine, head, asks)


def _asked_limit(body: ChatBody) -> int | None:
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise APIError(400, "max_tokens: it contradicts max_completion_tokens.", param="max_tokens")
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _delta(
    index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
