"""Several loads on one server, one after the other, each after its warm-up. Knows no terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from latentkv.bench.load.client import Client, Target
from latentkv.bench.load.drive import Load, Run, drive
from latentkv.bench.load.records import Record
from latentkv.bench.load.summary import Objective, summarise
from latentkv.bench.load.traffic import Planned

Report = Callable[[Load, str, int, float], None]
# The prompts of the warm-up are not those that are measured: nobody must have seen them.
WARM_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Measured:
    """A load and what it gave; `interrupted` when it was cut short."""

    load: Load
    summary: dict[str, Any]
    records: tuple[Record, ...]
    interrupted: bool


def as_record(measured: Measured, *, requests: bool) -> dict[str, Any]:
    """JSON-ready values; with `requests` each one's own, its pieces in milliseconds after it was due."""
    load = measured.load
    record: dict[str, Any] = {
        "load": load.name,
        "concurrency": load.concurrency,
        "rate": load.rate,
        "interrupted": measured.interrupted,
        **measured.summary,
    }
    if requests:
        record["records"] = [
            {
                "number": one.number,
                "error": one.error,
                "prompt_tokens": one.prompt_tokens,
                "output_tokens": one.output_tokens,
                "e2e_ms": round(one.e2e * 1e3, 3),
                "pieces_ms": [round((piece - one.due) * 1e3, 3) for piece in one.pieces],
            }
            for one in measured.records
        ]
    return record


async def measure_loads(
    target: Target,
    loads: Sequence[Load],
    requests: Callable[[int], Iterator[Planned]],
    *,
    warm_up: int,
    seed: int,
    objective: Objective | None,
    report: Report,
) -> list[Measured]:
    """Run each load; after Ctrl-C, those that were begun.

    requests: a seed's requests; every load has a seed of its own, so that none finds the prompts of another cached
    report:   called with (load, "warm-up" or "measuring", answers, seconds)
    """
    stop = asyncio.Event()
    found = []
    with _stopped_by_interrupt(stop):
        async with Client(target) as client:
            for number, load in enumerate(loads):
                if stop.is_set():
                    break
                own = seed + number
                await _warm(client, load, requests(own + WARM_SEED_STEP), warm_up, own, report, stop)
                if stop.is_set():
                    break
                run = await _run(client, load, requests(own), own, report, stop)
                summary = summarise(run.records, begin=run.begin, end=run.end, objective=objective)
                found.append(Measured(load, summary, tuple(run.records), run.interrupted))
    return found


async def _warm(
    client: Client, load: Load, requests: Iterator[Planned], count: int, seed: int, report: Report, stop: asyncio.Event
) -> None:
    if count == 0:
        return
    at_once = Load(concurrency=load.concurrency or min(count, 8), requests=count)

    def tell(done: int, seconds: float) -> None:
        report(load, "warm-up", done, seconds)

    await drive(_sender(client), islice(requests, count), at_once, seed=seed, report=tell, stop=stop)


async def _run(
    client: Client, load: Load, requests: Iterator[Planned], seed: int, report: Report, stop: asyncio.Event
) -> Run:
    def tell(done: int, seconds: float) -> None:
        report(load, "measuring", done, seconds)

    report(load, "measuring", 0, 0.0)
    return await drive(_sender(client), requests, load, seed=seed, report=tell, stop=stop)


def _sender(client: Client) -> Callable[[Planned, float], Awaitable[Record]]:
    return lambda planned, due: client.send(planned, due=due)


@contextmanager
def _stopped_by_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C sets `stop`; what it did before comes back after."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    except (NotImplementedError, RuntimeError):  # Windows, or not the main thread: Ctrl-C ends everything there
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
