"""A local Ray cluster with two replicas: one dies under load, and every request that was not half answered is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from support.ray_serving import ask_all, ray_server
from support.tiny_chat import save_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
REQUESTS = 24


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("ray")
    folder = save_chat_model(tmp_path_factory.mktemp("tiny") / "model", context=1024)
    with ray_server(folder, replicas=2, imbalance=64) as address:
        yield address


def test_a_replica_dies_under_load(url: str) -> None:
    before = ask_all(url, REQUESTS)
    assert all(answer.status == 200 and answer.whole for answer in before)
    replicas = {answer.replica for answer in before}
    assert len(replicas) == 2
    # The same beginnings go where they went.
    assert [answer.replica for answer in ask_all(url, REQUESTS)] == [answer.replica for answer in before]

    victim = sorted(replicas)[0]
    answers = ask_all(url, REQUESTS, after=0.3, kill=victim)
    for number, (answer, expected) in enumerate(zip(answers, before, strict=True)):
        if number % 2 == 0:
            assert (answer.status, answer.text) == (200, expected.text)
        elif not answer.whole:
            assert answer.replica == victim
            assert expected.text.startswith(answer.text.rstrip("\ufffd"))
    retried = [a for a, b in zip(answers, before, strict=True) if b.replica == victim and a.replica != victim]
    assert retried

    later = ask_all(url, REQUESTS)
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
