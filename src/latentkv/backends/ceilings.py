"""What this machine can do at best: fp32 multiply-adds and reading, measured in the process to be compared with it.

Needs the native extension and numpy, not torch. Benchmarks and `latentkv plan --this-machine` share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latentkv._native import Isa

# About 10 ms: as long as the cases, so that other work on the machine slows both alike.
FMA_ROUNDS = 2_000_000
# Larger than most caches; a server's last-level cache may hold it, and then holds the benchmark's cache too.
READ_BYTES = 256 * 2**20


class Ceilings:
    """The fastest fp32 multiply-add and read rates seen so far; `sample` is called beside each measurement."""

    def __init__(self, isa: Isa, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.isa = isa
        self.threads = threads
        self.clock = clock
        self.gflops = 0.0
        self.read_gbs = 0.0
        # Written once: pages that were never written are all the same zero page.
        self._memory = np.ones(READ_BYTES // 4, dtype=np.float32)

    def sample(self) -> tuple[float, float]:
        """Measure both once more: GFLOP/s and GB/s of this moment."""
        start = self.clock()
        flops = self.isa.fma_burst(FMA_ROUNDS, self.threads)
        gflops = flops / (self.clock() - start) / 1e9
        start = self.clock()
        self.isa.read_burst(self._memory, self.threads)
        read_gbs = READ_BYTES / (self.clock() - start) / 1e9
        self.gflops, self.read_gbs = max(self.gflops, gflops), max(self.read_gbs, read_gbs)
        return gflops, read_gbs
