"""Calls an ASGI application without a socket: a request in, the answer's parts out. Knows neither Ray nor a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
Headers = tuple[tuple[bytes, bytes], ...]
END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """An HTTP request with its whole body. chain: of its prompt, for routing"""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """The first part of an answer; every part after it is bytes of the body."""

    status: int
    headers: Headers


async def call(application: Application, asked: Asked) -> AsyncIterator[Begun | bytes]:
    """Run one request. Closing the iterator tells the application that its client has gone."""
    parts: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    bodies = [asked.body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        parts.put_nowait(message)

    async def run() -> None:
        try:
            await application(_scope(asked), receive, send)
        finally:
            parts.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (message := await parts.get()) is not None:
            if message["type"] == "http.response.start":
                yield Begun(message["status"], tuple((bytes(name), bytes(value)) for name, value in message["headers"]))
            elif message["type"] == "http.response.body" and message.get("body"):
                yield bytes(message["body"])
        await running
    finally:
        gone.set()
        _, unfinished = await asyncio.wait((running,), timeout=END_SECONDS)
        for task in unfinished:
            task.cancel()


def _scope(asked: Asked) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode("utf-8"),
        "query_string": asked.query,
        "root_path": "",
        "headers": list(asked.headers),
        "client": None,
        "server": None,
        "state": {},
    }
