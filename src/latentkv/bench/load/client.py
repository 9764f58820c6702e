"""Sends one request and notes when each piece of the answer came. Knows OpenAI's API and server-sent events.

aiohttp rather than httpx: its parser is compiled, and what the client computes is taken from a server on the same CPU.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import aiohttp

from latentkv.bench.load.records import Record
from latentkv.bench.load.traffic import Planned
from latentkv.errors import OptionError, sentence

LONGEST_EVENT_BYTES = 2**20
# Servers close idle connections, uvicorn after 5 s; a request that is just being sent on one would fail.
IDLE_SECONDS = 2.0
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go; `url` may end in /v1 or not.

    endpoint: "completions" or "chat"; chat takes prompts of text only
    extra:    further fields of every request
    """

    url: str
    model: str
    api_key: str | None = None
    endpoint: str = "completions"
    timeout_s: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The address without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def named(self, model: str) -> Target:
        """The same with another model."""
        return replace(self, model=model)

    def body(self, planned: Planned) -> dict[str, Any]:
        """The request as JSON. Raises OptionError for token ids on the chat endpoint."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": planned.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        if self.endpoint == "completions":
            prompt = planned.prompt
            return {**fields, "prompt": prompt if isinstance(prompt, str) else list(prompt)}
        if not isinstance(planned.prompt, str):
            remedy = "Give --text or --prompts."
            raise OptionError(sentence("--endpoint chat", expected="prompts of text", got="token ids", remedy=remedy))
        return {**fields, "messages": [{"role": "user", "content": planned.prompt}]}


class Client:
    """Connections to one server; use it as an async context."""

    def __init__(self, target: Target) -> None:
        self.target = target

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self.target.timeout_s),
            headers=self.target.headers,
            read_bufsize=LONGEST_EVENT_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def models(self) -> list[str]:
        """The names that the server lists. Raises OptionError when it does not answer so."""
        address = f"{self.target.root}/v1/models"
        try:
            async with self._session.get(address) as response:
                if response.status != 200:
                    raise OptionError(sentence(address, expected="a list of models", got=f"status {response.status}"))
                return [str(model["id"]) for model in (await response.json())["data"]]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise OptionError(sentence(address, expected="a list of models", got=repr(error))) from error

    async def send(self, planned: Planned, *, due: float | None = None) -> Record:
        """Send it now and read the whole answer; what goes wrong is in the record. `due` is of time.perf_counter."""
        body = self.target.body(planned)
        record = Record(planned.number, due if due is not None else time.perf_counter())
        try:
            async with self._session.post(self.target.root + PATHS[self.target.endpoint], json=body) as response:
                if response.status == 200:
                    await _read(response, record)
                else:
                    await response.read()
                    record.error = f"status {response.status}"
        except TimeoutError:
            record.error = "timeout"
        except (aiohttp.ClientError, OSError) as error:
            record.error = "cut off" if record.pieces else f"connection: {type(error).__name__}"
        except ValueError:
            record.error = "not an event stream"
        except asyncio.CancelledError:
            record.error = "cancelled"
            raise
        finally:
            record.done = time.perf_counter()
        return record


async def _read(response: aiohttp.ClientResponse, record: Record) -> None:
    """Fill in what a stream of events says. Raises ValueError for one that is no JSON."""
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            if not record.pieces:
                record.error = "no output"
            return
        now = time.perf_counter()
        event = json.loads(data)
        if "error" in event:
            record.error = "error in the stream"
            return
        usage = event.get("usage")
        if usage:
            record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if any(_has_text(choice) for choice in event.get("choices", ())):
            record.pieces.append(now)
    record.error = "cut off"


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether it adds output; the role at the start of a chat and the reason at the end do not."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls")))
