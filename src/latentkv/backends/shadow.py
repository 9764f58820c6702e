"""The shadow: a share of live steps is computed a second time by another backend, and both results are compared.

Every layer's attention of a chosen step is compared, output and LSE (agreement.py); requests always get the first
result. Errors go into histograms, a disagreement into a file that `latentkv replay` runs again (replay.py). Which steps
are chosen follows from a seed. A shadow that raises is counted and does no harm.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from bisect import bisect_left
from dataclasses import dataclass

from latentkv.backends.agreement import Agreement, compare
from latentkv.backends.base import Attended, Backend
from latentkv.backends.call import Call
from latentkv.backends.dumps import DumpFolder
from latentkv.errors import LatentKVError, OptionError, sentence

logger = logging.getLogger("latentkv.backends.shadow")

# Upper bounds of the errors' histograms.
ERROR_BOUNDS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bound of ERROR_BOUNDS, not summed up, and one more for what is above.

    total: the sum of the finite values
    """

    counts: tuple[int, ...] = (0,) * (len(ERROR_BOUNDS) + 1)
    total: float = 0.0

    def plus(self, value: float) -> Histogram:
        """With one value more."""
        place = bisect_left(ERROR_BOUNDS, value)
        counts = tuple(count + (index == place) for index, count in enumerate(self.counts))
        return Histogram(counts, self.total + (value if math.isfinite(value) else 0.0))


@dataclass(frozen=True, slots=True)
class ShadowState:
    """A shadow at one moment; counts since it was made.

    calls:      layers compared; errors: layers that the shadow could not compute
    mismatches: layers that did not agree; dumped: of these, written to a file
    """

    backend: str
    share: float
    steps: int
    calls: int
    errors: int
    mismatches: int
    dumped: int
    out_error: Histogram
    lse_error: Histogram


class Shadow:
    """Compares with `backend`, called `name`, in a `share` (0 to 1) of the steps.

    dumps: where disagreements are written, if anywhere

    Raises OptionError for a share outside its range.
    """

    def __init__(
        self, backend: Backend, *, share: float, name: str = "", seed: int = 0, dumps: DumpFolder | None = None
    ) -> None:
        if not 0 <= share <= 1:
            raise OptionError(sentence("shadow share", expected="from 0 to 1", got=share))
        self.name = name or backend.name
        self.share = share
        self._backend = backend
        self._dumps = dumps
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._steps = self._calls = self._errors = self._mismatches = self._dumped = 0
        self._out_error = Histogram()
        self._lse_error = Histogram()

    def takes_step(self, *, beside: str) -> bool:
        """Whether the next step is compared; never where `beside`, who computes it, is the shadow itself."""
        if self._random.random() >= self.share or beside == self.name:
            return False
        with self._lock:
            self._steps += 1
        return True

    def compare(self, name: str, result: Attended, call: Call) -> None:
        """Compute `call` and compare with what backend `name` made of it."""
        if name == self.name:
            return
        try:
            expected = call.run(self._backend)
        except Exception as error:
            with self._lock:
                self._errors += 1
                first = self._errors == 1
            if first:
                logger.warning("shadow %s failed: %s: %s; counted from now on", self.name, type(error).__name__, error)
            return
        agreement = compare(result, expected, format=call.request.format)
        with self._lock:
            self._calls += 1
            self._out_error = self._out_error.plus(agreement.out_error)
            self._lse_error = self._lse_error.plus(agreement.lse_error)
            self._mismatches += not agreement.ok
        if not agreement.ok:
            self._report(name, result, expected, agreement, call)

    def state(self) -> ShadowState:
        """Everything at this moment."""
        with self._lock:
            return ShadowState(
                backend=self.name,
                share=self.share,
                steps=self._steps,
                calls=self._calls,
                errors=self._errors,
                mismatches=self._mismatches,
                dumped=self._dumped,
                out_error=self._out_error,
                lse_error=self._lse_error,
            )

    def _report(self, name: str, result: Attended, expected: Attended, agreement: Agreement, call: Call) -> None:
        path = None
        if self._dumps is not None:
            try:
                path = self._dumps.write(call, (name, result), (self.name, expected), agreement)
            except (OSError, LatentKVError) as error:
                logger.warning("the disagreement could not be written: %s", error)
        with self._lock:
            self._dumped += path is not None
            first = self._mismatches == 1
        if path is not None or first:
            logger.error(
                "%s and %s disagree: output by %.1e of its largest, LSE by %.1e%s",
                *(name, self.name, agreement.out_error, agreement.lse_error),
                f"; replay {path}" if path is not None else "",
            )


def parse_share(text: str) -> tuple[str, float]:
    """ "portable:0.01" as a backend's name ("native:ISA" too) and a share. Raises OptionError."""
    name, colon, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not (name and colon and 0 <= value <= 1):
        raise OptionError(sentence("shadow", expected="BACKEND:SHARE with a share from 0 to 1", got=repr(text)))
    return name, value
