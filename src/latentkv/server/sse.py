"""Server-sent events, and work that ends when its client goes away. Knows no protocol above HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latentkv.server.api_error import APIError
from latentkv.server.service import Generation

Result = TypeVar("Result")
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):  # noqa: N818 (an event, not an error)
    """The client closed its connection before the answer was complete."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, cancel it and raise ClientGone when the client goes away first.

    receive: of a request whose body was read: the next message can only be its end
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends the events of a generation as they come, and closes the generation whatever happens.

    events: JSON-ready objects; an APIError among them is sent as the last event, without the closing [DONE]
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncIterator[dict[str, Any]], **options: Any) -> None:
        super().__init__(**options)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._generation = generation
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Send everything."""
        async with self._generation:
            try:
                await until_disconnect(receive, self._send_all(send))
            except ClientGone:
                return

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ending = DONE
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    await send({"type": "http.response.body", "body": encode(event), "more_body": True})
        except APIError as error:
            ending = encode(error.body())
        await send({"type": "http.response.body", "body": ending, "more_body": False})


def encode(event: dict[str, Any]) -> bytes:
    """One event with an object as its data."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
