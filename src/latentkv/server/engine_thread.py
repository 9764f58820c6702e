"""The engine in a thread of its own: takes jobs and cancellations through a queue, hands outputs to an event loop.

Only this thread touches the engine's state, between its steps. What others may read from outside is immutable: the
newest `EngineStats`, and the engine's model, tokenizer and limits. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from latentkv.engine.engine import Engine
from latentkv.engine.output import EngineStats, Output
from latentkv.engine.sampler import Constraint
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.state import Owner
from latentkv.errors import LatentKVError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Steps that fail one after the other, with other requests each time, before the engine counts as broken.
MOST_FAILURES = 8


class EngineState(Enum):
    """Where the engine's thread stands."""

    LOADING = "loading"
    SERVING = "serving"
    STOPPED = "stopped"
    DEAD = "dead"


class EngineFailedError(LatentKVError):
    """A step failed, or the engine ended, with this job in it."""


@dataclass(slots=True, eq=False)
class Job:
    """One choice of one prompt on its way through the engine.

    deliver:    called in the event loop with each output, or once with the error that ended the job
    followers:  jobs with the same prompt; they are submitted with this one's first token and share its pages
    submitted, first_token, last_token: seconds of the monotonic clock
    cancelled:  nobody waits for it any more
    """

    id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    deliver: Callable[[Output | Exception], None]
    constraint: Constraint | None = None
    priority: int = 0
    owner: Owner = ()
    followers: list[Job] = field(default_factory=list)
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    last_token: float | None = None
    output_tokens: int = 0
    cancelled: bool = False


class Observer(Protocol):
    """Told what happens, in the engine's thread; has to be quick."""

    def stepped(self, before: EngineStats, after: EngineStats) -> None:
        """A step was computed."""
        ...

    def produced(self, job: Job, output: Output, now: float) -> None:
        """A job got an output; `job` still has the times from before it."""
        ...

    def ended(self, job: Job, reason: str) -> None:
        """A job ended without a last output: "abort" or "error"."""
        ...


class EngineThread:
    """Loads an engine and runs it until it is stopped.

    load:     makes the engine, in the thread; its errors end up in `failure`
    observers: told about steps and outputs
    """

    def __init__(self, load: Callable[[], Engine], observers: Sequence[Observer]) -> None:
        self.state = EngineState.LOADING
        self.failure: BaseException | None = None
        self.stats: EngineStats | None = None
        self.step_started: float | None = None
        self._load = load
        self._observers = tuple(observers)
        self._engine: Engine | None = None
        self._commands: SimpleQueue[Callable[[Engine], None]] = SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._failures = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="latentkv-engine", daemon=True)

    @property
    def engine(self) -> Engine:
        """The engine, to read what never changes: model, tokenizer, limits. EngineFailedError before it is there."""
        if self._engine is None:
            raise EngineFailedError("the engine is not loaded.")
        return self._engine

    def start(self, loop: asyncio.AbstractEventLoop, *, on_change: Callable[[EngineState], None]) -> None:
        """Begin to load; `on_change` is called in `loop` when the state changes."""
        self._loop = loop
        self._on_change = on_change
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; their outputs and errors come through `deliver`."""
        self._commands.put(lambda engine: self._add(engine, jobs))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs and free their pages before the next step; nothing more is delivered for them by then."""
        self._commands.put(lambda engine: self._abort(engine, jobs))

    def call(self, function: Callable[[Engine], Result]) -> Future[Result]:
        """Run a function on the engine between two steps."""
        future: Future[Result] = Future()

        def command(engine: Engine) -> None:
            try:
                future.set_result(function(engine))
            except Exception as error:
                future.set_exception(error)

        self._commands.put(command)
        return future

    def stop(self) -> None:
        """End the thread after the step it is in; what still runs is told an error."""
        self._stopping = True
        self._commands.put(lambda _: None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            engine = self._engine = self._load()
            self.stats = engine.stats()
            self._change(EngineState.SERVING)
            while not self._stopping:
                self._obey(engine)
                if engine.has_work and not self._stopping:
                    self._step(engine)
            self._end(EngineState.STOPPED, EngineFailedError("the server is shutting down."))
        except BaseException as error:
            self.failure = error
            if self._engine is not None:
                logger.critical("the engine ended", exc_info=error)
            self._end(EngineState.DEAD, EngineFailedError("the engine has stopped."))

    def _obey(self, engine: Engine) -> None:
        """Carry out what was asked for since the last step; without work, wait until something is."""
        try:
            command = self._commands.get(block=not engine.has_work)
            while True:
                command(engine)
                command = self._commands.get_nowait()
        except Empty:
            self.stats = engine.stats()

    def _step(self, engine: Engine) -> None:
        before = self.stats
        self.step_started = time.perf_counter()
        try:
            outputs = engine.step()
        except Exception as error:
            self._failed_step(engine, error)
            return
        finally:
            self.step_started = None
        self._failures = 0
        now = time.perf_counter()
        self.stats = engine.stats()
        if before is not None:
            for observer in self._observers:
                observer.stepped(before, self.stats)
        self._deliver([(job, output) for output in outputs if (job := self._take(engine, output, now)) is not None])

    def _take(self, engine: Engine, output: Output, now: float) -> Job | None:
        job = self._jobs.get(output.request_id)
        if job is None:
            return None
        for observer in self._observers:
            observer.produced(job, output, now)
        if job.first_token is None:
            job.first_token = now
            self._add(engine, job.followers)
            job.followers = []
        job.last_token = now
        job.output_tokens += len(output.token_ids)
        if output.finished:
            del self._jobs[job.id]
        return job

    def _failed_step(self, engine: Engine, error: Exception) -> None:
        """End every request that was live, whose rows may be half written, and go on with an empty engine."""
        self._failures += 1
        logger.error("a step failed; its requests are ended", exc_info=error)
        engine.recover()
        self._fail_all(EngineFailedError("the computation of this request failed; the server's log says why."))
        if self._failures >= MOST_FAILURES:
            raise EngineFailedError(f"{self._failures} steps failed one after the other; the last: {error}") from error

    def _add(self, engine: Engine, jobs: Sequence[Job]) -> None:
        refused: list[tuple[Job, Output | Exception]] = []
        for job in jobs:
            if job.cancelled:
                continue
            try:
                engine.add_request(
                    job.prompt_token_ids,
                    job.params,
                    request_id=job.id,
                    constraint=job.constraint,
                    priority=job.priority,
                    owner=job.owner,
                )
                self._jobs[job.id] = job
            except LatentKVError as error:
                refused += [(one, error) for one in (job, *job.followers)]
        self._deliver(refused)

    def _abort(self, engine: Engine, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.cancelled = True
            if self._jobs.pop(job.id, None) is not None:
                engine.abort(job.id)
                self._ended(job, "abort")

    def _fail_all(self, error: Exception) -> None:
        ended = [one for job in self._jobs.values() for one in (job, *job.followers)]
        self._jobs.clear()
        for job in ended:
            self._ended(job, "error")
        self._deliver([(job, error) for job in ended])

    def _ended(self, job: Job, reason: str) -> None:
        for observer in self._observers:
            observer.ended(job, reason)

    def _end(self, state: EngineState, error: EngineFailedError) -> None:
        self._fail_all(error)
        self._change(state)

    def _deliver(self, events: Sequence[tuple[Job, Output | Exception]]) -> None:
        """One wake-up of the event loop for all events of a step."""
        if events:
            self._in_loop(_deliver_all, events)

    def _change(self, state: EngineState) -> None:
        self.state = state
        self._in_loop(self._on_change, state)

    def _in_loop(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop is closed: nobody is left to tell")


def _deliver_all(events: Sequence[tuple[Job, Output | Exception]]) -> None:
    for job, event in events:
        job.deliver(event)
