"""One /v1/completions request: its choices over the engine, and its answer whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from latentkv.engine.engine import Engine
from latentkv.server import prompting
from latentkv.server.api_error import refused
from latentkv.server.logprobs import CompletionLogprobs
from latentkv.server.outgoing import Head, Usage
from latentkv.server.protocol.completion import DEFAULT_MAX_TOKENS, CompletionBody
from latentkv.server.service import Ask, Generation


@dataclass(frozen=True, slots=True)
class Completing:
    """A checked request: what to ask of the engine and how to answer. echoes: the text before each prompt's output."""

    body: CompletionBody
    engine: Engine
    head: Head
    asks: list[Ask]
    prompts: Sequence[tuple[int, ...]]
    echoes: Sequence[str]

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when everything is there."""
        usage, logprobs = self._usage(), self._logprobs()
        texts = [self._echo(index) for index in range(len(self.asks))]
        reasons: list[str | None] = [None] * len(self.asks)
        parts: list[list[dict[str, Any]]] = [[] for _ in self.asks]
        async for index, output in generation.outputs():
            usage.add(output, leads=index % self.body.choices == 0)
            texts[index] += output.text
            reasons[index] = output.finish_reason
            if output.logprobs:
                parts[index].append(logprobs[index].add(output))
        choices = [
            {"index": index, "text": text, "logprobs": logprobs[index].joined(parts[index]), "finish_reason": reason}
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self.head.part(choices, usage=usage.json())

    async def events(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        usage, logprobs = self._usage(), self._logprobs()
        more = {"usage": None} if self.body.include_usage else {}
        for index in range(len(self.asks)):
            if self._echo(index):
                yield self.head.part([_choice(index, self._echo(index), None, None)], **more)
        async for index, output in generation.outputs():
            usage.add(output, leads=index % self.body.choices == 0)
            told = logprobs[index].add(output) if output.logprobs else None
            if output.text or told or output.finished:
                yield self.head.part([_choice(index, output.text, told, output.finish_reason)], **more)
        if self.body.include_usage:
            yield self.head.part([], usage=usage.json())

    def _usage(self) -> Usage:
        return Usage(sum(len(prompt) for prompt in self.prompts))

    def _logprobs(self) -> list[CompletionLogprobs]:
        return [CompletionLogprobs(self.engine.tokenizer, self.body.logprobs) for _ in self.asks]

    def _echo(self, index: int) -> str:
        return self.echoes[index // self.body.choices]


def prepare(body: CompletionBody, engine: Engine, head: Head) -> Completing:
    """Check and tokenise a request. Raises APIError 400 naming the field."""
    if body.echo and body.logprobs is not None:
        raise refused("echo", "log-probabilities of the prompt are not computed; leave echo or logprobs out.")
    prompting.check_sampling(engine, body)
    written = body.prompts()
    prompts = [prompting.encode(engine, prompt, field="prompt") for prompt in written]
    asks = [ask for prompt in prompts for ask in _asks(body, engine, prompt)]
    echoes = [""] * len(prompts)
    if body.echo:
        tokenizer = prompting.tokenizer_of(engine)
        echoes = [one if isinstance(one, str) else tokenizer.decode(one) for one in written]
    return Completing(body, engine, head, asks, prompts, echoes)


def _asks(body: CompletionBody, engine: Engine, prompt: tuple[int, ...]) -> list[Ask]:
    limit = prompting.output_limit(engine, len(prompt), body.max_tokens, default=DEFAULT_MAX_TOKENS, field="max_tokens")

    def ask(choice: int) -> Ask:
        params = body.sampling_params(max_tokens=limit, logprobs=body.logprobs, choice=choice)
        return Ask(prompt, params, priority=body.priority or 0)

    return prompting.told_as("prompt", lambda: [ask(choice) for choice in range(body.choices)])


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
