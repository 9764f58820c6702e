"""Keeps requests coming: so many at once, or at given times. Knows no network; `send` does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field

from latentkv.bench.load.records import Record
from latentkv.bench.load.traffic import Planned, poisson_arrivals
from latentkv.errors import OptionError, sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is sent: either `concurrency` requests at once, or `rate` a second; until one of the limits.

    Raises OptionError for both or neither of each pair.
    """

    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise OptionError(sentence("load", expected="either a concurrency or a rate", got="both or neither"))
        if self.requests is None and self.duration_s is None:
            raise OptionError(sentence("load", expected="a number of requests or a duration", got="neither"))

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.concurrency} at once" if self.concurrency is not None else f"{self.rate:g}/s"

    def is_over(self, sent: int, seconds: float) -> bool:
        """Whether no more is to be sent."""
        return (self.requests is not None and sent >= self.requests) or (
            self.duration_s is not None and seconds >= self.duration_s
        )


Send = Callable[[Planned, float], Awaitable[Record]]
Report = Callable[[int, float], None]
One = Callable[[Planned, float], Coroutine[None, None, None]]


@dataclass
class Run:
    """What came of a load; `begin` and `end` are of time.perf_counter. Filled in while it runs."""

    begin: float = 0.0
    end: float = 0.0
    records: list[Record] = field(default_factory=list)
    interrupted: bool = False


async def drive(
    send: Send, requests: Iterator[Planned], load: Load, *, seed: int, report: Report, stop: asyncio.Event
) -> Run:
    """Send until the load is over and all is answered; `stop` ends it at once, and what was not answered is left out.

    report: called with (answers so far, seconds so far) at each answer
    """
    run = Run(begin=time.perf_counter())

    async def one(planned: Planned, due: float) -> None:
        record = await send(planned, due)
        run.records.append(record)
        run.end = record.done
        report(len(run.records), record.done - run.begin)

    pace = _closed(one, requests, load, run) if load.rate is None else _open(one, requests, load, run, seed)
    sending = asyncio.ensure_future(pace)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not sending.done():
        sending.cancel()
        run.end = time.perf_counter()
    try:
        await sending
    except asyncio.CancelledError:
        run.interrupted = True
    return run


async def _closed(one: One, requests: Iterator[Planned], load: Load, run: Run) -> None:
    sent = 0

    async def client() -> None:
        nonlocal sent
        while not load.is_over(sent, time.perf_counter() - run.begin):
            planned = next(requests, None)
            if planned is None:
                return
            sent += 1
            await one(planned, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency or 0):
            group.create_task(client())


async def _open(one: One, requests: Iterator[Planned], load: Load, run: Run, seed: int) -> None:
    arrivals = poisson_arrivals(load.rate or 0.0, seed=seed)
    async with asyncio.TaskGroup() as group:
        for sent, (at, planned) in enumerate(zip(arrivals, requests, strict=False)):
            if load.is_over(sent, at):
                return
            await asyncio.sleep(run.begin + at - time.perf_counter())
            group.create_task(one(planned, run.begin + at))
