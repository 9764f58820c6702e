"""Requests of one server: admits them or says why not, and gives each its outputs as they come. Knows no JSON."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count as counter
from types import TracebackType

from latentkv.engine.output import Output
from latentkv.engine.sampler import Constraint
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.state import Owner
from latentkv.server import api_error
from latentkv.server.api_error import APIError
from latentkv.server.engine_thread import EngineFailedError, EngineState, EngineThread, Job
from latentkv.server.grammar import Grammars
from latentkv.server.options import ServerOptions

LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Ask:
    """What one choice asks of the engine. Choices of one prompt stand next to each other and share `prompt`.

    priority: less is more urgent
    """

    prompt: Sequence[int]
    params: SamplingParams
    constraint: Constraint | None = None
    priority: int = 0


class Generation:
    """The outputs of one HTTP request; leaving its `async with` frees whatever still runs."""

    def __init__(
        self, service: Service, request_id: str, asks: Sequence[Ask], owner: Owner, deadline: float | None
    ) -> None:
        self.jobs = [
            Job(
                f"{request_id}-{index}",
                ask.prompt,
                ask.params,
                partial(self.put, index),
                ask.constraint,
                ask.priority,
                owner,
            )
            for index, ask in enumerate(asks)
        ]
        self._service = service
        self._deadline = deadline
        self._events: asyncio.Queue[tuple[int, Output | Exception]] = asyncio.Queue()
        self._alive = set(range(len(self.jobs)))

    def put(self, index: int, event: Output | Exception) -> None:
        """Take an event of choice `index`; called in the event loop."""
        self._events.put_nowait((index, event))

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """(choice, output) as they come, until all choices are finished.

        Raises APIError after the deadline, when the engine fails and when the server shuts down.
        """
        while self._alive:
            index, event = await self._next()
            if isinstance(event, Exception):
                raise _as_api_error(event)
            if index not in self._alive:
                continue
            if event.finished:
                self._alive.discard(index)
            yield index, event

    async def _next(self) -> tuple[int, Output | Exception]:
        if not self._events.empty() or self._deadline is None:
            return await self._events.get()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._events.get()
        except TimeoutError:
            raise api_error.timed_out(self._service.options.request_timeout_s) from None

    def finish(self, index: int) -> None:
        """Nothing more is wanted of choice `index`."""
        self._alive.discard(index)
        self._service.thread.cancel([self.jobs[index]])

    def close(self) -> None:
        """End all choices that still run; may be called more than once."""
        self._service.closed(self, [self.jobs[index] for index in sorted(self._alive)])

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Service:
    """Admits requests to the engine's thread and keeps account of those that live.

    max_running: how many the engine computes at once; `options.max_queue` more may wait
    """

    def __init__(self, thread: EngineThread, options: ServerOptions) -> None:
        self.thread = thread
        self.options = options
        self.draining = False
        self.max_running = 0
        self._live: set[Generation] = set()
        self._choices = 0
        self._numbers = counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_seconds = 1.0

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles grammars for the engine's tokenizer; there is none before the engine."""
        return Grammars(self.thread.engine)

    @property
    def live_choices(self) -> int:
        """Choices that wait or run."""
        return self._choices

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.thread.state is EngineState.SERVING and not self.draining

    def check_ready(self) -> None:
        """Raise APIError 503 while nothing can be taken: loading, shutting down, or dead."""
        if self.draining or self.thread.state is EngineState.STOPPED:
            raise api_error.draining()
        if self.thread.state is EngineState.LOADING:
            raise api_error.loading()
        if self.thread.state is EngineState.DEAD:
            raise api_error.engine_dead()

    def submit(self, request_id: str, asks: Sequence[Ask], *, owner: Owner) -> Generation:
        """Start a request, or raise APIError: 503 as `check_ready`, 429 with Retry-After when the queue is full.

        owner: who shares the machine with other owners
        """
        self.check_ready()
        self._check_room(len(asks))
        timeout = self.options.request_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout if timeout else None
        # A client may use its own request id again while the first is alive; the engine's names are unique.
        generation = Generation(self, f"{request_id}/{next(self._numbers)}", asks, owner, deadline)
        self._live.add(generation)
        self._choices += len(asks)
        self._idle.clear()
        self.thread.submit(_leaders(generation.jobs))
        return generation

    def closed(self, generation: Generation, unfinished: Sequence[Job]) -> None:
        """Forget a generation and end what is unfinished of it."""
        if generation not in self._live:
            return
        self._live.remove(generation)
        self._choices -= len(generation.jobs)
        for job in generation.jobs:
            if job.first_token is not None and job.last_token is not None:
                self._mean_seconds += 0.1 * (job.last_token - job.submitted - self._mean_seconds)
        if unfinished:
            self.thread.cancel(unfinished)
        if not self._live:
            self._idle.set()

    async def drain(self) -> None:
        """Take nothing more, and wait for what lives; after the shutdown timeout it is ended with an error."""
        self.draining = True
        try:
            async with asyncio.timeout(self.options.shutdown_timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for generation in list(self._live):
                generation.put(0, api_error.draining())
            await asyncio.sleep(0.2)

    def _check_room(self, count: int) -> None:
        room = self.max_running + self.options.max_queue
        if count > room:
            raise APIError(400, f"n: {count} choices in all, and this server takes at most {room} at once.", param="n")
        if self._choices + count > room:
            waiting = max(1, self._choices - self.max_running + 1)
            seconds = math.ceil(self._mean_seconds * waiting / max(1, self.max_running))
            raise APIError(
                429,
                f"{self._choices} requests are running and waiting, and {room} is the limit. Try again later.",
                code="queue_full",
                headers={"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY_S))},
            )


def _leaders(jobs: Sequence[Job]) -> list[Job]:
    """The first job of each prompt; the others follow it, and find its pages in the cache."""
    leaders: list[Job] = []
    for job in jobs:
        if leaders and leaders[-1].prompt_token_ids is job.prompt_token_ids:
            leaders[-1].followers.append(job)
        else:
            leaders.append(job)
    return leaders


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, EngineFailedError):
        return APIError(500, str(error), code="engine_error")
    return APIError(400, str(error))
