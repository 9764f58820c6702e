"""Times contenders in turns, so that what the machine does meanwhile hits them alike. Knows not what they do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# A run this long needs no warm-up of its own: what is cold is a small part of it.
LONG_SECONDS = 5.0
# A peer that takes this many times as long as the fastest peer is measured once.
HOPELESS = 2.0


@dataclass
class Contender:
    """One of those that are compared: `run` does the work once and returns its seconds.

    peer: compared with, not measured for its own sake; only the fastest peer is repeated
    """

    name: str
    run: Callable[[], float]
    peer: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of the middle run."""
        return statistics.median(self.seconds)


def take_turns(contenders: Sequence[Contender], *, repeats: int, report: Callable[[int, str], None]) -> None:
    """Fill in everyone's `seconds`: a turn of warm-up, then `repeats` that count.

    A warm-up of several seconds counts as the first repeat, and a peer that is out of the race keeps its warm-up alone.
    report: called with (runs done, the name of the one that begins now)
    """
    for done, contender in enumerate(contenders):
        report(done, contender.name)
        contender.seconds = [contender.run()]
    fastest = min((contender.median for contender in contenders if contender.peer), default=0.0)
    racing = [one for one in contenders if not (one.peer and one.median > HOPELESS * fastest)]
    for contender in racing:
        if contender.median < LONG_SECONDS:
            contender.seconds = []
    for turn in range(repeats):
        for place, contender in enumerate(racing):
            if len(contender.seconds) <= turn:
                report(len(contenders) * (turn + 1) + place, contender.name)
                contender.seconds.append(contender.run())
