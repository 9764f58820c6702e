"""The client against a server that answers as it is told: every way to fail has its name, loads keep their shape."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import pytest
from aiohttp import web

from latentkv.bench.load.client import Client, Target
from latentkv.bench.load.drive import Load, Run, drive
from latentkv.bench.load.records import Record
from latentkv.bench.load.session import as_record, measure_loads
from latentkv.bench.load.traffic import Length, Planned, Traffic
from latentkv.errors import OptionError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ASK = Planned(0, (1, 2, 3), 4)
TRAFFIC = Traffic(input=Length(3), output=Length(2))


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event(choices=[{"index": 0, "text": text}])


WHOLE = (
    piece("a"),
    piece("b"),
    event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}),
    b"data: [DONE]\n\n",
)


def streaming(*parts: bytes) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return handle


async def listing(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny"}]})


async def answered(handler: Handler, use: Callable[[Client], Awaitable[Any]], **target: Any) -> Any:
    app = web.Application()
    for path in ("/v1/completions", "/v1/chat/completions"):
        app.router.add_post(path, handler)
    app.router.add_get("/v1/models", listing)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Client(Target(**{"url": url, "model": "tiny", **target})) as client:
            return await use(client)
    finally:
        await runner.cleanup()


def record_of(handler: Handler, planned: Planned = ASK, **target: Any) -> Record:
    return asyncio.run(answered(handler, lambda client: client.send(planned), **target))


def test_a_whole_answer_has_its_pieces_and_the_servers_counts() -> None:
    record = record_of(streaming(*WHOLE))
    assert record.error is None
    assert len(record.pieces) == 2
    assert (record.prompt_tokens, record.tokens) == (3, 4)
    assert record.due <= record.pieces[0] <= record.pieces[1] <= record.done


def test_without_counts_a_piece_is_a_token() -> None:
    record = record_of(streaming(WHOLE[0], WHOLE[1], WHOLE[3]))
    assert (record.prompt_tokens, record.tokens) == (None, 2)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((WHOLE[0],), "cut off"),
        ((b"data: [DONE]\n\n",), "no output"),
        ((WHOLE[0], event(error={"message": "x"})), "error in the stream"),
        ((b"data: {\n\n",), "not an event stream"),
    ],
)
def test_a_broken_stream_is_told_by_its_kind(parts: tuple[bytes, ...], error: str) -> None:
    assert record_of(streaming(*parts)).error == error


def test_a_refusal_is_told_by_its_status() -> None:
    async def full(_: web.Request) -> web.Response:
        return web.json_response({"error": {}}, status=429)

    assert record_of(full).error == "status 429"


def test_slow_and_absent_servers_are_told() -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    assert record_of(slow, timeout_s=0.05).error == "timeout"
    assert record_of(slow, url="http://127.0.0.1:1").error == "connection: ClientConnectorError"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_request_says_what_is_asked(suffix: str) -> None:
    seen: list[tuple[dict[str, Any], str | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((await request.json(), request.headers.get("Authorization")))
        return await streaming(*WHOLE)(request)

    async def use(client: Client) -> None:
        target = Target(
            url=client.target.url + suffix, model="tiny", api_key="secret", endpoint="chat", extra={"temperature": 0}
        )
        async with Client(target) as other:
            assert await other.models() == ["tiny"]
            assert (await other.send(Planned(0, "hi", 9))).error is None

    asyncio.run(answered(handle, use))
    [(body, authorization)] = seen
    assert authorization == "Bearer secret"
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (9, 0, True)


def test_chat_takes_no_token_ids() -> None:
    with pytest.raises(OptionError, match="prompts of text"):
        Target(url="http://x", model="tiny", endpoint="chat").body(ASK)


def run_load(load: Load, *, stop_after: int | None = None) -> tuple[Run, int]:
    """The run, and how many requests were on their way at once at most."""
    running, most = 0, 0
    stop = asyncio.Event()

    async def send(planned: Planned, due: float) -> Record:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        if planned.number == stop_after:
            stop.set()
        return Record(planned.number, due, done=due + 0.002, pieces=[due])

    async def go() -> Run:
        return await drive(send, TRAFFIC.requests(), load, seed=0, report=lambda *_: None, stop=stop)

    return asyncio.run(go()), most


def test_a_closed_loop_keeps_so_many_on_their_way() -> None:
    run, most = run_load(Load(concurrency=3, requests=10))
    assert most == 3
    assert sorted(record.number for record in run.records) == list(range(10))


def test_an_open_loop_sends_when_requests_are_due() -> None:
    run, _ = run_load(Load(rate=400.0, requests=12))
    dues = [record.due - run.begin for record in sorted(run.records, key=lambda record: record.number)]
    assert len(dues) == 12
    assert dues == sorted(dues)
    assert len(set(dues)) == 12


def test_a_duration_ends_a_load() -> None:
    run, _ = run_load(Load(rate=1000.0, duration_s=0.05))
    assert 20 < len(run.records) < 100


def test_an_interrupted_load_keeps_what_was_answered() -> None:
    run, _ = run_load(Load(concurrency=2, requests=10**6), stop_after=5)
    assert run.interrupted
    assert 4 <= len(run.records) <= 8


def test_a_load_is_either_closed_or_open_and_ends() -> None:
    for fields in ({}, {"concurrency": 1, "rate": 1.0, "requests": 1}, {"concurrency": 1}):
        with pytest.raises(OptionError, match="load"):
            Load(**fields)


def test_loads_are_measured_after_their_warm_up() -> None:
    seen: list[list[int]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((await request.json())["prompt"])
        return await streaming(*WHOLE)(request)

    async def use(client: Client) -> Any:
        return await measure_loads(
            client.target,
            [Load(concurrency=1, requests=3), Load(rate=200.0, requests=2)],
            lambda seed: Traffic(input=Length(3), output=Length(2), seed=seed).requests(),
            warm_up=2,
            seed=0,
            objective=None,
            report=lambda *_: None,
        )

    first, second = asyncio.run(answered(handle, use))
    assert [len(one.records) for one in (first, second)] == [3, 2]
    assert first.summary["completed"] == 3
    assert len({tuple(prompt) for prompt in seen}) == len(seen) == 9
    record = as_record(first, requests=True)
    assert [len(one["pieces_ms"]) for one in record["records"]] == [2, 2, 2]
    assert list(islice(record, 3)) == ["load", "concurrency", "rate"]


def test_ctrl_c_keeps_what_was_measured() -> None:
    asked = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 3:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(5)
        return await streaming(*WHOLE)(request)

    async def use(client: Client) -> Any:
        loads = [Load(concurrency=1, requests=9), Load(concurrency=2, requests=9)]
        report = {"warm_up": 0, "seed": 0, "objective": None, "report": lambda *_: None}
        return await measure_loads(client.target, loads, lambda _: TRAFFIC.requests(), **report)

    [first] = asyncio.run(answered(handle, use))
    assert first.interrupted
    assert first.summary["completed"] == 2
