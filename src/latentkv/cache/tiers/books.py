"""Which slot of a bounded store holds which page. Counting only: no bytes, no files.

Slots are numbered from 0 and used from the lowest, so that a store grows no further than it must. When all are taken,
the page that was unused for longest gives way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from latentkv.cache.pages import PageAccountingError


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot for a new page, and the page that had to leave it (None where it was free)."""

    slot: int
    displaced: bytes | None


class SlotBooks:
    """At most `num_slots` pages, by digest, each in a slot of its own; with 0 slots it holds nothing."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free: list[int] = []
        self._unused_from = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[bytes]:
        """Digests, the longest unused first."""
        return iter(self._slots)

    def slot(self, digest: bytes) -> int | None:
        """Where the page is; None when it is not held."""
        return self._slots.get(digest)

    def touch(self, digest: bytes) -> None:
        """Count a held page as just used."""
        self._slots.move_to_end(digest)

    def claim(self, digest: bytes) -> Claim | None:
        """A slot for a page that is not held yet, displacing the longest unused one if it must; None without slots."""
        if digest in self._slots:
            raise PageAccountingError("a page that is held already was to get another slot")
        if self.num_slots == 0:
            return None
        displaced = None
        if len(self._slots) >= self.num_slots:
            displaced = next(iter(self._slots))
            self.drop(displaced)
        slot = self._take()
        self._slots[digest] = slot
        return Claim(slot, displaced)

    def restore(self, held: Iterable[tuple[bytes, int]]) -> None:
        """Begin with pages that lie in slots below `num_slots` already, the longest unused first."""
        self._slots = OrderedDict(held)
        used = set(self._slots.values())
        self._unused_from = max(used, default=-1) + 1
        self._free = sorted(set(range(self._unused_from)) - used)

    def drop(self, digest: bytes) -> None:
        """Forget a held page; its slot is free again."""
        heappush(self._free, self._slots.pop(digest))

    def shrink(self) -> None:
        """From now on hold no more pages than now: the store turned out to have no more room."""
        self.num_slots = len(self._slots)

    def check(self, digests: Collection[bytes]) -> None:
        """Raise PageAccountingError unless these are the pages held, and every slot is free or holds one page."""
        used = list(self._slots.values())
        every_slot_once = sorted(used + self._free) == list(range(self._unused_from))
        if not every_slot_once or len(used) > self.num_slots or self._slots.keys() != set(digests):
            raise PageAccountingError(
                f"{len(digests)} pages known, {len(used)} in slots, {len(self._free)} slots free, "
                f"{self._unused_from} in use so far, {self.num_slots} allowed"
            )

    def _take(self) -> int:
        if self._free:
            return heappop(self._free)
        self._unused_from += 1
        return self._unused_from - 1
