"""Kernels against the machine's ceilings. Knows not what a case computes, only what it has to do at least.

Cases take turns, each with the ceilings measured right before it: a share is a case's rate over the ceiling of the same
moment, so that what slows the machine then hits both. The median counts; the best is told beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from latentkv.backends.ceilings import Ceilings
from latentkv.backends.isa import find_isa
from latentkv.errors import OptionError, sentence

# Short calls are repeated, as layers follow each other: as long as the ceilings beside them take.
LEAST_SECONDS = 0.02
Clock = Callable[[], float]


@dataclass
class Case:
    """One thing to measure: the operations and the bytes that it takes at least."""

    name: str
    call: Callable[[], object]
    threads: int
    flops: float
    read_bytes: float = 0.0
    times: list[float] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, ceilings: Ceilings, clock: Clock) -> None:
        """Run once and keep the time, and the shares of the ceilings of this moment."""
        gflops, read_gbs = ceilings.sample()
        torch.set_num_threads(self.threads)
        calls = 1 if not self.times else max(1, round(LEAST_SECONDS / min(self.times)))
        start = clock()
        for _ in range(calls):
            self.call()
        seconds = (clock() - start) / calls
        self.times.append(seconds)
        self.shares.append((self.flops / seconds / 1e9 / gflops, self.read_bytes / seconds / 1e9 / read_gbs))

    @property
    def row(self) -> dict[str, Any]:
        """JSON-ready: milliseconds, rates and shares; medians, and the best of them."""
        of_fma, of_read = zip(*self.shares, strict=True)
        seconds = statistics.median(self.times)
        return {
            "case": self.name,
            "ms": round(seconds * 1e3, 3),
            "best_ms": round(min(self.times) * 1e3, 3),
            "gflops": round(self.flops / seconds / 1e9, 1),
            "share_of_fma": round(statistics.median(of_fma), 3),
            "best_share_of_fma": round(max(of_fma), 3),
            "read_gbs": round(self.read_bytes / seconds / 1e9, 2),
            "share_of_read": round(statistics.median(of_read), 3),
            "best_share_of_read": round(max(of_read), 3),
        }


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    isa:      an instruction set, by default the best
    threads:  for everything that names no other number
    only:     cases whose name holds this
    cpu_time: one thread's own time, for a machine that others share
    """

    isa: str | None = None
    threads: int = 1
    repeats: int = 7
    only: str = ""
    cpu_time: bool = False

    def __post_init__(self) -> None:
        if self.cpu_time and self.threads != 1:
            raise OptionError(sentence("--cpu-time", expected="--threads 1", got=f"{self.threads} threads"))


def measure_cases(
    cases: Sequence[Case], options: Options, *, report: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Everybody in turns, after a turn of warm-up. JSON-ready.

    report: called with (measurements done, in all, the name of the next)
    Raises OptionError when there are no cases.
    """
    if not cases:
        raise OptionError(sentence("--only", expected="a part of a case's name", got=repr(options.only)))
    isa, clock = find_isa(options.isa), time.thread_time if options.cpu_time else time.perf_counter
    ceilings = {count: Ceilings(isa, count, clock) for count in {case.threads for case in cases}}
    total = (options.repeats + 1) * len(cases)
    for done in range(total):
        case = cases[done % len(cases)]
        report(done, total, case.name)
        case.measure(ceilings[case.threads], clock)
    report(total, total, "")
    for case in cases:  # the first touches the memory
        del case.times[0], case.shares[0]
    rows = [case.row for case in cases]
    return {"isa": isa.name, "threads": options.threads, "ceilings": _best(ceilings), "cases": rows}


def _best(ceilings: Mapping[int, Ceilings]) -> dict[str, dict[str, float]]:
    """By number of threads."""
    return {
        str(count): {"gflops": round(one.gflops, 1), "read_gbs": round(one.read_gbs, 2)}
        for count, one in sorted(ceilings.items())
    }
