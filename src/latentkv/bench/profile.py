"""Where the time of a decode step goes, measured while the engine runs.

The native module is replaced by one whose functions are timed before they do their work, so that a kernel's time is
that of its C++ alone; native blocks say themselves how long their parts took. Embedding, angles and sampling, which are
torch's operations, are timed as a whole. What no timer covers is Python: engine, scheduler, layers, and the arguments
of every call. Each timer adds about half a microsecond to what it does not cover.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from latentkv.engine import verify
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.model import Model
from latentkv.ops.rope import Rope

NATIVE = "latentkv._native"
# The native functions by what they are for; any other is attention's.
PARTS = {
    "linear": "weights",
    "linear_gated": "weights",
    "linear_groups": "weights",
    "rms_norm": "norms",
    "rotate_query": "rope and cache rows",
    "write_latent": "rope and cache rows",
    "write_rows": "rope and cache rows",
}
# What blocks tell, in their order.
BLOCKS, BLOCK_PARTS = "run_blocks", ("weights", "attention", "rope and cache rows")
ATTENTION, PYTHON = "attention", "Python"
# Torch's operations around the kernels: owner, its function, and the part it belongs to.
TIMED: tuple[tuple[object, str, str], ...] = (
    (Model, "_embed", "embedding"),
    (Rope, "angles", "rope and cache rows"),
    (verify, "sample", "sampling"),
)
# Of the steps, one in so many counts, the fastest: in the others the machine did something else, too.
FASTEST = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Milliseconds of a decode step, its share of the step, and calls in it (0 for what is left to Python)."""

    name: str
    milliseconds: float
    share: float
    calls: float


@dataclass
class Clock:
    """Seconds and calls by part, since it was last emptied."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to `part`."""
        seconds, calls, now = self.seconds, self.calls, time.perf_counter

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += now() - begin
                calls[part] += 1

        return run

    def told(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that runs blocks, what it tells added to the parts."""

        def run(*args: Any, **kwargs: Any) -> Any:
            done, seconds = function(*args, **kwargs)
            for part, one in zip(BLOCK_PARTS, seconds, strict=True):
                self.seconds[part] += one
                self.calls[part] += 1
            return done, seconds

        return run

    def take(self) -> tuple[dict[str, float], Counter[str]]:
        """What has come together, and begin anew."""
        taken = dict(self.seconds), Counter(self.calls)
        self.seconds.clear()
        self.calls.clear()
        return taken


@contextmanager
def timing() -> Iterator[Clock]:
    """A clock that runs inside: models loaded inside are timed, whatever was loaded before is not."""
    clock = Clock()
    with ExitStack() as undo:
        real = importlib.import_module(NATIVE)
        undo.callback(sys.modules.__setitem__, NATIVE, real)
        sys.modules[NATIVE] = _TimedModule(real, clock)
        for owner, name, part in TIMED:
            function = getattr(owner, name)
            undo.callback(setattr, owner, name, function)
            setattr(owner, name, clock.timed(part, function))
        yield clock


def profile_decode(model: Model, clock: Clock, *, context_tokens: int, tokens: int, cache_format: str) -> list[Part]:
    """Parts of a decode step of one request, medians over the faster steps of `tokens`: the longest first, Python last.

    model: loaded inside `timing`; clock: its clock
    """
    engine = Engine(model, cache_format=cache_format, cache_tokens=context_tokens + tokens + 2)
    prompt = [1 + index % 100 for index in range(max(1, context_tokens))]
    params = SamplingParams(temperature=0.0, max_tokens=tokens + 2, ignore_eos=True)
    engine.add_request(prompt, params)
    while not engine.stats().decode_tokens:
        engine.step()
    clock.take()
    steps: list[float] = []
    parts: list[dict[str, float]] = []
    calls: Counter[str] = Counter()
    while engine.has_work:
        begin = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - begin)
        seconds, called = clock.take()
        parts.append(seconds)
        calls += called
    return _parts(steps, parts, calls)


def _parts(steps: Sequence[float], parts: Sequence[Mapping[str, float]], calls: Counter[str]) -> list[Part]:
    # A step's own remainder, not the remainder of medians: they are not of the same step.
    every = [(step, {**part, PYTHON: step - sum(part.values())}) for step, part in zip(steps, parts, strict=True)]
    rows = sorted(every, key=lambda row: row[0])[: -(-len(every) // FASTEST)]
    found = [
        Part(
            name,
            statistics.median(row.get(name, 0.0) for _, row in rows) * 1e3,
            statistics.median(row.get(name, 0.0) / step for step, row in rows),
            calls[name] / len(steps),
        )
        for name in sorted({name for _, row in rows for name in row})
    ]
    return sorted(found, key=lambda part: (part.name == PYTHON, -part.milliseconds))


class _TimedModule(ModuleType):
    """The native module, its instruction sets replaced by timed ones."""

    def __init__(self, real: ModuleType, clock: Clock) -> None:
        super().__init__(NATIVE)
        self._real = real
        self._isas = tuple(_TimedIsa(isa, clock) for isa in real.isas())

    def isas(self) -> tuple[Any, ...]:
        return self._isas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _TimedIsa:
    """One instruction set's functions, timed."""

    def __init__(self, isa: Any, clock: Clock) -> None:
        self._isa = isa
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._isa, name)
        if name == BLOCKS:
            value = self._clock.told(value)
        elif callable(value):
            value = self._clock.timed(PARTS.get(name, ATTENTION), value)
        # Found at once from now on: the search would count as Python's time.
        self.__dict__[name] = value
        return value
