"""When a backend that fails is left alone, and when it is tried again. Knows no backend, only that it failed.

closed ── `failures` within `window_s` ──> open ── `cooldown_s` later ──> half-open ── one good step ──> closed
                                            ^────────────── it fails again ──────────┘
off: an operator said so; only an operator ends it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from latentkv.errors import OptionError, sentence

BreakerState = Literal["closed", "half-open", "open", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """How patient a breaker is.

    failures:   steps that failed, within `window_s` seconds, after which a backend is no longer asked
    cooldown_s: after so long one step is tried again; None waits until an operator switches it on
    """

    failures: int = 3
    window_s: float = 60.0
    cooldown_s: float | None = 30.0

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise OptionError(sentence("failures", expected="1 or more", got=self.failures))
        for name, value in (("window_s", self.window_s), ("cooldown_s", self.cooldown_s)):
            if value is not None and not value >= 0:
                raise OptionError(sentence(name, expected="0 or more seconds", got=value))


class Breaker:
    """The state of one backend. Not thread-safe: its owner locks."""

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float]) -> None:
        """`clock`: seconds that only grow."""
        self.policy = policy
        self._clock = clock
        self._state: BreakerState = "closed"
        self._failed_at: deque[float] = deque(maxlen=policy.failures)
        self._opened_at = 0.0

    @property
    def state(self) -> BreakerState:
        """Where it stands now; an open one becomes half-open when it has cooled down."""
        cooldown = self.policy.cooldown_s
        if self._state == "open" and cooldown is not None and self._clock() - self._opened_at >= cooldown:
            self._state = "half-open"
        return self._state

    @property
    def allows(self) -> bool:
        """Whether the backend may be asked."""
        return self.state in ("closed", "half-open")

    def failed(self) -> None:
        """A step failed."""
        now = self._clock()
        self._failed_at.append(now)
        trial = self.state == "half-open"
        many = len(self._failed_at) == self.policy.failures and now - self._failed_at[0] <= self.policy.window_s
        if self._state != "off" and (trial or many):
            self._state, self._opened_at = "open", now

    def succeeded(self) -> None:
        """A whole step went well."""
        if self.state == "half-open":
            self._close()

    def switch_off(self) -> None:
        """Not asked again until `switch_on`."""
        self._state = "off"

    def switch_on(self) -> None:
        """Asked from now on, whatever happened before."""
        self._close()

    def _close(self) -> None:
        self._state = "closed"
        self._failed_at.clear()
