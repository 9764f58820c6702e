"""A local Ray cluster with two replicas: one dies under load, and every request that was not half answered is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from support.tiny_chat import save_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
OPTIONS = "--cache-tokens 16384 --model-name tiny --no-prefix-cache"
PORT = 8427
REQUESTS, TOKENS = 24, 96


@dataclass
class Answer:
    """What came of one request; `whole` when nothing is missing at its end."""

    status: int
    replica: str
    text: str
    whole: bool


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ray = pytest.importorskip("ray")
    from ray import serve

    from latentkv.integrations.ray import AppOptions, app

    folder = save_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=1024)
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"port": PORT})
    serve.run(app(AppOptions(model=str(folder), options=OPTIONS, replicas=2, cpus=0.5, imbalance=64)))
    yield f"http://127.0.0.1:{PORT}"
    serve.shutdown()
    ray.shutdown()


def body(number: int, *, stream: bool) -> dict[str, Any]:
    prompt = [(number * 31 + index * 7) % 256 for index in range(700)]
    return {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


async def ask(session: aiohttp.ClientSession, url: str, number: int, *, stream: bool) -> Answer:
    async with session.post(f"{url}/v1/completions", json=body(number, stream=stream)) as response:
        replica = response.headers.get("x-replica", "")
        content = (await response.read()).decode()
        if not stream:
            text = json.loads(content)["choices"][0]["text"] if response.status == 200 else content
            return Answer(response.status, replica, text, whole=response.status == 200)
        lines = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        text = "".join(choice["text"] for event in events for choice in event.get("choices", ()))
        return Answer(response.status, replica, text, whole=lines[-1:] == ["[DONE]"])


async def ask_all(url: str, *, after: float | None = None, kill: str = "") -> list[Answer]:
    """All requests at once, every second one as a stream; `kill` names a replica that dies after so many seconds."""
    import ray

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = [asyncio.ensure_future(ask(session, url, n, stream=n % 2 == 1)) for n in range(REQUESTS)]
        if after is not None:
            await asyncio.sleep(after)
            actor = ray.get_actor(f"SERVE_REPLICA::default#Replica#{kill}", namespace="serve")
            ray.kill(actor, no_restart=True)
        return await asyncio.gather(*asking)


def test_a_replica_dies_under_load(url: str) -> None:
    before = asyncio.run(ask_all(url))
    assert all(answer.status == 200 and answer.whole for answer in before)
    replicas = {answer.replica for answer in before}
    assert len(replicas) == 2
    # The same beginnings go where they went.
    assert [answer.replica for answer in asyncio.run(ask_all(url))] == [answer.replica for answer in before]

    victim = sorted(replicas)[0]
    answers = asyncio.run(ask_all(url, after=0.3, kill=victim))
    for number, (answer, expected) in enumerate(zip(answers, before, strict=True)):
        if number % 2 == 0:
            assert (answer.status, answer.text) == (200, expected.text)
        elif not answer.whole:
            assert answer.replica == victim
            assert expected.text.startswith(answer.text.rstrip("\ufffd"))
    retried = [a for a, b in zip(answers, before, strict=True) if b.replica == victim and a.replica != victim]
    assert retried

    later = asyncio.run(ask_all(url))
    assert [answer.text for answer in later] == [answer.text for answer in before]


def test_the_rest_of_the_server_is_there(url: str) -> None:
    async def get() -> list[Any]:
        async with aiohttp.ClientSession() as session:
            found = []
            for path in ("/v1/models", "/health", "/ui/", "/nothing"):
                async with session.get(url + path) as response:
                    found.append((response.status, response.content_type))
            async with session.post(f"{url}/v1/completions", data=b"{") as response:
                found.append((response.status, response.content_type))
            return found

    assert asyncio.run(get()) == [
        (200, "application/json"),
        (200, "application/json"),
        (200, "text/html"),
        (404, "application/json"),
        (400, "application/json"),
    ]
