"""Backends while serving: one that fails is replaced in that same step, and left alone when it fails again and again.

    step begins ──> Guard.begin ──> Watch ── attend, layer by layer ──> the first backend that gives a finite LSE

A call that raises, or whose output or LSE holds NaN or +inf, is computed again by the next backend that can run it,
which also computes the rest of the step: attention only reads the cache, so nothing is lost. Where every backend finds
no finite result, the rows or queries are to blame, and no backend is. What this cannot catch: a crash of the process,
and a backend that never returns.

Knows neither models nor requests. The state is in the object; a guard serves one engine, whose thread begins steps,
while any other thread may read it and switch backends.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentkv.backends.base import Attended, Backend, Plan, Request
from latentkv.backends.breaker import Breaker, BreakerPolicy, BreakerState
from latentkv.backends.call import Call
from latentkv.backends.registry import find_backend, known_backends
from latentkv.backends.shadow import Shadow
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.errors import OptionError, UnsupportedError, sentence
from latentkv.ops.absorb import UpProjection

logger = logging.getLogger("latentkv.backends.guard")

NON_FINITE = "non-finite"
EVENTS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Failure:
    """A backend failed in a step. reason: the exception's class, or "non-finite"; replaced_by: None where nobody could

    seconds: since the epoch
    """

    backend: str
    reason: str
    message: str
    replaced_by: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class GuardState:
    """A guard at one moment; all counts are since it was made.

    preferred:  what the operator asked for: "auto" or a name
    active:     who is asked first in the next step
    breakers:   of every backend, in the order in which they are asked
    paths:      steps by what computed their last layer, for instance "native:avx2:latent"
    failures:   by (backend, reason); replaced: steps by (from, to)
    not_finite: calls where no backend found a finite result
    """

    preferred: str
    active: str
    breakers: dict[str, BreakerState]
    paths: dict[str, int]
    failures: dict[tuple[str, str], int]
    replaced: dict[tuple[str, str], int]
    not_finite: int


class Guard:
    """Chooses who computes attention, step by step; see the module docstring.

    order:     names of backends ("native:ISA" too) in the order of preference; by default plug-ins, then the registry's
    plugins:   backends that are not in the registry
    preferred: the one that is asked before the others of the order, or "auto"
    shadow:    recomputes a share of the steps
    clock:     seconds that only grow, for the breakers

    Raises OptionError for an unknown name or an empty order.
    """

    def __init__(
        self,
        order: Sequence[str] = (),
        *,
        plugins: Sequence[Backend] = (),
        preferred: str = "auto",
        policy: BreakerPolicy | None = None,
        shadow: Shadow | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = tuple(order) or tuple(backend.name for backend in known_backends(plugins))
        self._plugins = tuple(plugins)
        self._policy = policy or BreakerPolicy()
        self._clock = clock
        self.shadow = shadow
        self._lock = threading.Lock()
        self._backends = {name: find_backend(name, plugins=plugins) for name in names}
        self._breakers = {name: Breaker(self._policy, clock) for name in names}
        self._preferred = preferred
        if preferred != "auto":
            self._know(preferred)
        self._last: Watch | None = None
        self._events: deque[Failure] = deque(maxlen=EVENTS_KEPT)
        self._paths: Counter[str] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._replaced: Counter[tuple[str, str]] = Counter()
        self._not_finite = 0

    @property
    def events(self) -> tuple[Failure, ...]:
        """The last failures, oldest first."""
        with self._lock:
            return tuple(self._events)

    def state(self) -> GuardState:
        """Everything at this moment."""
        with self._lock:
            order = self._order()
            return GuardState(
                preferred=self._preferred,
                active=order[0],
                breakers={name: breaker.state for name, breaker in self._breakers.items()},
                paths=dict(self._paths),
                failures=dict(self._failures),
                replaced=dict(self._replaced),
                not_finite=self._not_finite,
            )

    def switch(self, name: str) -> None:
        """Prefer this backend ("auto": the order given) from the next step on, and switch it on; others stay behind it.

        Raises OptionError for an unknown name, UnsupportedError for an instruction set that is not here.
        """
        with self._lock:
            if name != "auto":
                self._know(name)
                self._breakers[name].switch_on()
            self._preferred = name
        logger.warning("attention backend: %s from the next step on", name)

    def disable(self, name: str) -> None:
        """Do not ask this backend until `enable` or `switch`. Raises OptionError if no other one would be left."""
        with self._lock:
            self._know(name)
            if all(breaker.state == "off" for other, breaker in self._breakers.items() if other != name):
                raise OptionError(sentence("backend", expected="one that is not the last", got=repr(name)))
            self._breakers[name].switch_off()
            if self._preferred == name:
                self._preferred = "auto"
        logger.warning("attention backend %s is switched off", name)

    def enable(self, name: str) -> None:
        """Ask this backend again, whatever happened before."""
        with self._lock:
            self._know(name)
            self._breakers[name].switch_on()
        logger.warning("attention backend %s is switched on", name)

    def begin(self, batch: Batch) -> Watch:
        """The watch over one step; what was switched until now holds for all of it. Ends the step before."""
        with self._lock:
            if self._last is not None:
                self._settle(self._last)
            order = self._order()
            trial = self._breakers[order[0]].state == "half-open"
            candidates = tuple((name, self._backends[name]) for name in order)
            shadowed = self.shadow is not None and batch.num_tokens > 0 and self.shadow.takes_step(beside=order[0])
            self._last = Watch(self, batch, candidates, shadowed=shadowed, trial=trial)
            return self._last

    def record(self, backend: str, reason: str, message: str, replaced_by: str | None) -> None:
        """Count a failure of a step, and log it if it is the first of its kind."""
        with self._lock:
            known = (backend, reason) in self._failures
            self._failures[backend, reason] += 1
            if replaced_by is not None:
                self._replaced[backend, replaced_by] += 1
            self._events.append(Failure(backend, reason, message, replaced_by, time.time()))
            before, breaker = self._breakers[backend].state, self._breakers[backend]
            breaker.failed()
            after = breaker.state
        if not known:
            taken = f"{replaced_by} computes the rest of the step" if replaced_by is not None else "nobody replaced it"
            logger.warning("attention backend %s failed (%s): %s; counted from now on", backend, message, taken)
        if after == "open" != before:
            logger.error("attention backend %s is left alone after repeated failures", backend)

    def blame_input(self) -> None:
        """Count a call for which no backend finds a finite result."""
        with self._lock:
            self._not_finite += 1
            first = self._not_finite == 1
        if first:
            logger.warning("no backend finds a finite result: cached rows or queries are not finite themselves")

    def _order(self) -> list[str]:
        """Who may be asked, in order; everyone that is not off when failures left nobody."""
        names = sorted(self._breakers, key=lambda name: name != self._preferred)
        return [name for name in names if self._breakers[name].allows] or [
            name for name in names if self._breakers[name].state != "off"
        ]

    def _know(self, name: str) -> None:
        if name not in self._backends:
            self._backends[name] = find_backend(name, plugins=self._plugins)
            self._breakers[name] = Breaker(self._policy, self._clock)

    def _settle(self, watch: Watch) -> None:
        if watch.path and watch.batch.num_tokens:
            self._paths[watch.path] += 1
        for name in watch.succeeded:
            self._breakers[name].succeeded()


class Watch:
    """One step under guard: who computes it. Made by `Guard.begin`, used by one thread.

    batch: the step's
    path:  what ran in the last layer that was seen
    """

    def __init__(
        self,
        guard: Guard,
        batch: Batch,
        candidates: tuple[tuple[str, Backend], ...],
        *,
        shadowed: bool,
        trial: bool,
    ) -> None:
        self.path = ""
        self._guard = guard
        self.batch = batch
        self._candidates = list(candidates)
        self._shadowed = shadowed
        self._trial = trial
        self._plans: dict[str, Plan] = {}
        self._ran: set[str] = set()
        self._failed: set[str] = set()

    @property
    def wants_calls(self) -> bool:
        """Whether attention has to come through `attend`, rather than through something native that contains it."""
        return self._shadowed or self._trial or self._candidates[0][0] != "native"

    @property
    def succeeded(self) -> set[str]:
        """Backends that computed layers of this step, and failed in none."""
        return self._ran - self._failed

    def over(self, batch: Batch) -> Watch:
        """The rest of this step over other queries: who failed in one has failed in both."""
        rest = Watch(self._guard, batch, tuple(self._candidates), shadowed=self._shadowed, trial=self._trial)
        rest._ran, rest._failed = self._ran, self._failed
        return rest

    def note(self, path: str) -> None:
        """What ran, told by a computation that contains attention."""
        self.path = path

    def failed(self, backend: str, error: Exception | str) -> None:
        """Take note that a computation which contains this backend's attention raised, or gave "non-finite" results.

        The rest of the step is the next backend's.
        """
        others = [name for name, _ in self._candidates if name != backend]
        self._failed.add(backend)
        self._guard.record(backend, *_reason(error), others[0] if others else None)
        if others:
            self._candidates = [(name, one) for name, one in self._candidates if name != backend]

    def attend(
        self, request: Request, query: Tensor, cache: LayerCache, *, scale: float, up: UpProjection | None
    ) -> Attended:
        """One layer's attention, causal, by the first backend that gives a finite result; see `attend.attend`.

        Raises what the first backend raised when every one does.
        """
        call = Call(request, query, cache, self.batch, scale, up)
        raised: list[tuple[str, Exception]] = []
        doubtful: list[tuple[str, Attended]] = []
        for name, backend in self._candidates:
            try:
                result = self._run(name, backend, call)
            except Exception as error:
                raised.append((name, error))
                continue
            if result is None:
                continue
            if _is_finite(result):
                self._replace([*raised, *((other, NON_FINITE) for other, _ in doubtful)], name)
                return self._done(name, result, call)
            doubtful.append((name, result))
        if not doubtful:
            return self._give_up(request, raised)
        self._guard.blame_input()
        name, result = doubtful[0]
        self._replace(raised, name)
        return self._done(name, result, call)

    def _run(self, name: str, backend: Backend, call: Call) -> Attended | None:
        """None where the backend says that it cannot run this."""
        if name not in self._plans:
            if not backend.supports(call.request).ok:
                return None
            self._plans[name] = backend.plan(call.request, self.batch)
        return call.run(backend, self._plans[name])

    def _replace(self, failed: Sequence[tuple[str, Exception | str]], name: str) -> None:
        """From here on the step is without those that failed; `name` computes it."""
        if not failed:
            return
        for other, error in failed:
            self._failed.add(other)
            self._guard.record(other, *_reason(error), name)
        self._candidates = [(other, one) for other, one in self._candidates if other not in self._failed]

    def _done(self, name: str, result: Attended, call: Call) -> Attended:
        self._ran.add(name)
        self.path = result.path
        if self._shadowed and self._guard.shadow is not None:
            self._guard.shadow.compare(name, result, call)
        return result

    def _give_up(self, request: Request, raised: Sequence[tuple[str, Exception]]) -> Attended:
        for name, error in raised:
            self._guard.record(name, *_reason(error), None)
        if not raised:
            names = ", ".join(name for name, _ in self._candidates)
            raise UnsupportedError(sentence("backends", expected=f"one that can run {request}", got=names))
        raise raised[0][1]


def _reason(error: Exception | str) -> tuple[str, str]:
    if isinstance(error, str):
        return error, error
    return type(error).__name__, f"{type(error).__name__}: {error}"


def _is_finite(result: Attended) -> bool:
    """Whether no LSE is NaN or +inf (-inf is an empty row) and no output is NaN or infinite.

    Both in one reduction each: the largest of numbers with a NaN among them is NaN, and so is their sum.
    """
    if not result.lse.numel():
        return True
    return result.lse.max().item() < math.inf and math.isfinite(result.out.sum().item())
