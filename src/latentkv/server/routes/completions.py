"""/v1/chat/completions and /v1/completions: check, submit, answer whole or as a stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from latentkv.server import chatting, completing
from latentkv.server.api_error import APIError
from latentkv.server.context import Context, Ctx
from latentkv.server.outgoing import Head
from latentkv.server.protocol.chat import ChatBody
from latentkv.server.protocol.completion import CompletionBody
from latentkv.server.protocol.sampling import SamplingBody
from latentkv.server.service import Ask, Generation
from latentkv.server.sse import EventStream, until_disconnect

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", response_model=None)
async def chat_completions(body: ChatBody, request: Request, context: Ctx) -> Response:
    """Answer a conversation."""
    head = _head(body, context, "chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
    engine, grammars = context.service.thread.engine, context.service.grammars
    work = await asyncio.to_thread(chatting.prepare, body, engine, grammars, head)
    return await _answer(work, body, request, context)


@router.post("/completions", response_model=None)
async def completions(body: CompletionBody, request: Request, context: Ctx) -> Response:
    """Continue texts."""
    head = _head(body, context, "cmpl", "text_completion")
    engine = context.service.thread.engine
    work = await asyncio.to_thread(completing.prepare, body, engine, head)
    return await _answer(work, body, request, context)


class Work(Protocol):
    """A checked request."""

    @property
    def asks(self) -> list[Ask]:
        """Its choices."""
        ...

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """The answer when everything is there."""
        ...

    def events(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        ...


async def _answer(work: Work, body: SamplingBody, request: Request, context: Context) -> Response:
    owner = (request.state.api_key, body.user or "")
    generation = context.service.submit(request.state.request_id, work.asks, owner=owner)
    if body.stream:
        return EventStream(generation, work.events(generation))
    async with generation:
        return JSONResponse(await until_disconnect(request.receive, work.whole(generation)))


def _head(body: SamplingBody, context: Context, kind: str, object: str) -> Head:
    """What the answer begins with; refuses what no request may ask now."""
    context.service.check_ready()
    if body.model not in context.options.model_names:
        names = ", ".join(context.options.model_names)
        raise APIError(
            404, f"model: there is no {body.model!r}, this server has {names}.", param="model", code="model_not_found"
        )
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options: it needs stream to be true.", param="stream_options")
    return Head(f"{kind}-{uuid.uuid4().hex}", object, body.model)
