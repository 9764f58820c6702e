"""Writes behind the engine's back: jobs in the order they were given, one at a time, in a thread of their own.

Whoever gives jobs asks `finished` how they went, from its own thread, so that it needs no locks. When more than
`limit_bytes` wait, giving another one waits for the oldest. At the end of the program what waits is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from latentkv.cache.tiers.record import SavedPage


@dataclass(frozen=True, slots=True)
class Job:
    """A page that is written, or yet to be."""

    page: SavedPage
    future: Future[None]


class Writer:
    """One thread and its queue."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"latentkv-{name}")
        self._jobs: deque[Job] = deque()
        self._waiting_bytes = 0

    def give(self, page: SavedPage, write: Callable[[], None]) -> list[Job]:
        """Queue `write`, which writes `page`; the jobs that were finished before there was room for it."""
        finished = self.finished()
        while self._jobs and self._waiting_bytes + len(page.rows) > self.limit_bytes:
            finished.append(self._oldest())
        self._jobs.append(Job(page, self._thread.submit(write)))
        self._waiting_bytes += len(page.rows)
        return finished

    def finished(self, *, wait: bool = False) -> list[Job]:
        """Jobs that are done and were not told of before, in order; with `wait` all that were given."""
        done: list[Job] = []
        while self._jobs and (wait or self._jobs[0].future.done()):
            done.append(self._oldest())
        return done

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._thread.shutdown(wait=True)

    def _oldest(self) -> Job:
        # Waited for before it is taken off: an interrupted wait loses no job.
        self._jobs[0].future.exception()
        self._waiting_bytes -= len(self._jobs[0].page.rows)
        return self._jobs.popleft()
