"""Who waits, and who is next: by urgency, then those who had to give way, then the owner served least, then arrival.

Waiting makes urgent: every AGEING_STEPS steps a request counts as one priority more urgent, so that nothing waits
forever behind more urgent arrivals. Owners of equal urgency (API keys, and the users of each among themselves) share
the machine by tokens computed for them, as in the virtual token counters of Sheng et al., arXiv:2401.00588: who comes
back from a pause starts at the least count of those who are here, and can neither save up nor be made to pay.

Knows neither pages nor tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from latentkv.engine.state import Owner, Sequence, Status

AGEING_STEPS = 200


class WaitingLine:
    """The sequences that wait. `now` counts steps; the scheduler moves it on."""

    def __init__(self) -> None:
        self.now = 0
        self._waiting: list[Sequence] = []
        self._arrivals = 0
        self._live: Counter[Owner] = Counter()
        self._served: Counter[Owner] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they would start now."""
        return iter(sorted(self._waiting, key=self._place))

    def __getitem__(self, index: int) -> Sequence:
        return list(self)[index]

    @property
    def first(self) -> Sequence | None:
        """The next one to start; None when nobody waits."""
        return min(self._waiting, key=self._place, default=None)

    def arrive(self, sequence: Sequence) -> None:
        """A new one joins."""
        for owner in _owners(sequence):
            if not self._live[owner]:
                beside = [other for other, live in self._live.items() if live and _siblings(owner, other)]
                least = min((self._served[other] for other in beside), default=0)
                self._served[owner] = max(self._served[owner], least)
            self._live[owner] += 1
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.come_back(sequence)

    def come_back(self, sequence: Sequence) -> None:
        """One that had started waits again."""
        sequence.queued_at = self.now
        sequence.status = Status.WAITING
        self._waiting.append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """One starts, or ends without having started."""
        self._waiting.remove(sequence)
        sequence.waited_steps += self.now - sequence.queued_at

    def ended(self, sequence: Sequence) -> None:
        """One that arrived has ended, however."""
        for owner in _owners(sequence):
            self._live[owner] -= 1
            if not self._live[owner]:
                del self._live[owner]
        if not self._live:
            self._served.clear()

    def serve(self, sequence: Sequence, tokens: int) -> None:
        """Tokens are computed for one."""
        for owner in _owners(sequence):
            self._served[owner] += tokens

    def rank(self, sequence: Sequence) -> int:
        """Its priority after ageing; less is more urgent."""
        waiting = self.now - sequence.queued_at if sequence.status is Status.WAITING else 0
        return sequence.request.priority - (sequence.waited_steps + waiting) // AGEING_STEPS

    def _place(self, sequence: Sequence) -> tuple[int, bool, tuple[int, ...], int]:
        fresh = not sequence.preemptions
        served = tuple(self._served[owner] for owner in _owners(sequence)) if fresh else ()
        return self.rank(sequence), fresh, served, sequence.arrival


def _owners(sequence: Sequence) -> list[Owner]:
    """Everyone whose share a sequence takes from, the widest first; those of nobody share one too."""
    owner = sequence.request.owner or ("",)
    return [owner[: depth + 1] for depth in range(len(owner))]


def _siblings(one: Owner, other: Owner) -> bool:
    return len(one) == len(other) and one[:-1] == other[:-1]
