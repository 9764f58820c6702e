"""An application called without a socket: the request it sees, the parts it sends, and a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from latentkv.integrations.asgi_call import Asked, Begun, call

app = FastAPI()
left = asyncio.Event()


@app.post("/echo")
async def echo(request: Request) -> dict[str, Any]:
    return {"body": (await request.body()).decode(), "query": dict(request.query_params), "key": request.headers["k"]}


@app.get("/pieces")
async def pieces(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        try:
            for number in range(1000):
                yield f"{number};".encode()
                await asyncio.sleep(0.001)
        finally:
            left.set()

    return StreamingResponse(body())


@app.get("/defect")
async def defect() -> None:
    raise RuntimeError("a defect")


def asked(method: str, path: str, body: bytes = b"") -> Asked:
    return Asked(method, path, b"a=1", ((b"k", b"secret"), (b"content-type", b"text/plain")), body)


async def parts_of(request: Asked, most: int | None = None) -> list[Begun | bytes]:
    found: list[Begun | bytes] = []
    async with aclosing(call(app, request)) as parts:
        async for part in parts:
            found.append(part)
            if len(found) == most:
                break
    return found


def test_a_request_arrives_as_it_was_asked() -> None:
    begun, *body = asyncio.run(parts_of(asked("POST", "/echo", b"hello")))
    assert isinstance(begun, Begun)
    assert begun.status == 200
    assert b"".join(body) == b'{"body":"hello","query":{"a":"1"},"key":"secret"}'


def test_an_answer_comes_in_parts() -> None:
    _, *body = asyncio.run(parts_of(asked("GET", "/pieces")))
    assert len(body) == 1000
    assert body[:2] == [b"0;", b"1;"]


def test_leaving_ends_the_application() -> None:
    async def leave() -> bool:
        left.clear()
        await parts_of(asked("GET", "/pieces"), most=3)
        return left.is_set()

    assert asyncio.run(leave())


def test_other_paths_and_defects() -> None:
    [begun, *_] = asyncio.run(parts_of(asked("GET", "/nothing")))
    assert isinstance(begun, Begun)
    assert begun.status == 404
    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(parts_of(asked("GET", "/defect")))
