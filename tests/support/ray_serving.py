"""The server on a local Ray cluster, and requests to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

OPTIONS = "--cache-tokens 16384 --model-name tiny --no-prefix-cache"
PORT = 8427
TOKENS = 96


@dataclass
class Answer:
    """What came of one request; `whole` when nothing is missing at its end."""

    status: int
    replica: str
    text: str
    whole: bool


@contextmanager
def ray_server(model: Path, **options: Any) -> Iterator[str]:
    """The address of the application `latentkv.integrations.ray:app` with these options, on a cluster of its own."""
    import ray
    from ray import serve

    from latentkv.integrations.ray import AppOptions, app

    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False)
    try:
        serve.start(http_options={"port": PORT})
        serve.run(app(AppOptions(model=str(model), options=OPTIONS, cpus=0.5, **options)))
        yield f"http://127.0.0.1:{PORT}"
        serve.shutdown()
    finally:
        ray.shutdown()


def body(number: int, *, stream: bool) -> dict[str, Any]:
    """A request of 700 tokens that are its own from the first on."""
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
    """Request `number` and its answer."""
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


def ask_all(url: str, requests: int, *, after: float | None = None, kill: str = "") -> list[Answer]:
    """All requests at once, every second one as a stream; `kill` names a replica that dies after so many seconds."""
    return asyncio.run(_ask_all(url, requests, after, kill))


async def _ask_all(url: str, requests: int, after: float | None, kill: str) -> list[Answer]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = [asyncio.ensure_future(ask(session, url, n, stream=n % 2 == 1)) for n in range(requests)]
        if after is not None:
            import ray

            await asyncio.sleep(after)
            actor = ray.get_actor(f"SERVE_REPLICA::default#Replica#{kill}", namespace="serve")
            ray.kill(actor, no_restart=True)
        return await asyncio.gather(*asking)
