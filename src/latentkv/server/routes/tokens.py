"""/tokenize and /detokenize: what the model would be given, and back."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from latentkv.engine.engine import Engine
from latentkv.server import prompting
from latentkv.server.api_error import APIError
from latentkv.server.context import Context, Ctx
from latentkv.server.conversation import render
from latentkv.server.protocol.tokens import DetokenizeBody, TokenizeBody

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, context: Ctx) -> dict[str, Any]:
    """The token ids of a text or of a conversation, and how many there may be at most."""
    engine = _engine(body.model, context)
    tokens = await asyncio.to_thread(_tokens, body, engine)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": engine.capacity_tokens}


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, context: Ctx) -> dict[str, Any]:
    """The text of token ids, special tokens included."""
    tokenizer = prompting.tokenizer_of(_engine(body.model, context))
    return {"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)}


def _tokens(body: TokenizeBody, engine: Engine) -> list[int]:
    tokenizer = prompting.tokenizer_of(engine)
    if body.messages is None:
        special = body.add_special_tokens is not False
        return prompting.told_as("prompt", lambda: tokenizer.encode(body.prompt or "", special_tokens=special))
    messages, tools, opened = body.messages, body.tools or (), body.add_generation_prompt is not False
    text = prompting.told_as("messages", lambda: render(engine, messages, tools, add_generation_prompt=opened))
    return tokenizer.encode(text, special_tokens=False)


def _engine(model: str | None, context: Context) -> Engine:
    context.service.check_ready()
    if model is not None and model not in context.options.model_names:
        raise APIError(404, f"model: there is no {model!r}.", param="model", code="model_not_found")
    return context.service.thread.engine
