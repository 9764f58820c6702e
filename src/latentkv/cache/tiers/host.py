"""Pages in host memory, as plain bytes, up to a bound; the first stop of pages that leave the cache.

Where the cache is on a GPU this is the larger memory. On a CPU both are the same memory: there the host tier is worth
its bytes because it takes them only as pages arrive, and because what comes back soon never meets the disk. Without a
disk behind it, more `cache_tokens` would serve as well.

A page that goes back to the cache leaves this tier; pages that do not fit go on to the next one, longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict

from latentkv.cache.pages import PageAccountingError
from latentkv.cache.tiers.record import Rows, SavedPage, StoredPage


class HostTier:
    """At most `limit_bytes` of rows."""

    name = "host"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._pages: OrderedDict[bytes, SavedPage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, digest: bytes) -> StoredPage | None:
        """The record of a page that is here."""
        page = self._pages.get(digest)
        return page.record if page is not None else None

    def put(self, page: SavedPage) -> list[SavedPage]:
        """Take a page that is not here yet; those that had to leave for it, longest unused first (perhaps itself)."""
        self._pages[page.record.digest] = page
        self.size_bytes += len(page.rows)
        left: list[SavedPage] = []
        while self.size_bytes > self.limit_bytes:
            left.append(self._remove(next(iter(self._pages))))
        return left

    def read(self, digest: bytes) -> Rows | None:
        """The rows of a page, which leaves this tier; None when it is not here."""
        return self._remove(digest).rows if digest in self._pages else None

    def drop(self, digest: bytes) -> None:
        """Forget a page, if it is here."""
        if digest in self._pages:
            self._remove(digest)

    def touch(self, digest: bytes) -> None:
        """Count a page that is here as just used."""
        self._pages.move_to_end(digest)

    def reset(self) -> None:
        """Forget everything."""
        self._pages.clear()
        self.size_bytes = 0

    def check(self) -> None:
        """Raise PageAccountingError unless the bytes counted are those held, and no more than allowed."""
        held_bytes = sum(len(page.rows) for page in self._pages.values())
        if self.size_bytes != held_bytes or held_bytes > self.limit_bytes:
            raise PageAccountingError(
                f"host tier: {self.size_bytes} bytes counted, {held_bytes} held, {self.limit_bytes} allowed"
            )

    def _remove(self, digest: bytes) -> SavedPage:
        page = self._pages.pop(digest)
        self.size_bytes -= len(page.rows)
        return page
