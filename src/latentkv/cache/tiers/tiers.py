"""Pages below the cache: saved when they leave it, found by their tokens, brought back only when undamaged.

    device   the cache itself (cache/latent.py), of which this file knows nothing
    host     memory, if `host_cache_bytes` is given; pages move down into it and back up out of it
    swap     a file, if `swap_dir` is given; for pages that the host tier has no room for
    cache    a file that the next process finds, if `cache_dir` is given; takes every full page as it is computed

Pages are named by a digest of their tokens and all before them, so an evicted prefix and the pages of a preempted
sequence are the same thing here: who needs them again finds them. Nothing here is needed for a right answer, and a page
that is missing, damaged or slower to load than to compute is computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentkv.cache.pages import PageAccountingError
from latentkv.cache.prefix import Link
from latentkv.cache.tiers.costs import Costs
from latentkv.cache.tiers.disk import DiskTier
from latentkv.cache.tiers.folders import check_room, open_cache, open_swap
from latentkv.cache.tiers.host import HostTier
from latentkv.cache.tiers.options import TierOptions
from latentkv.cache.tiers.record import Rows, SavedPage, StoredPage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Rows that came back undamaged, and from which tier."""

    rows: Rows
    tier: str


@dataclass(frozen=True, slots=True)
class TierStats:
    """Counts since the tiers were opened, and what they hold now. `checksum_failures` counts all damaged pages."""

    host_pages: int = 0
    host_bytes: int = 0
    disk_pages: int = 0
    disk_bytes: int = 0
    swapped_out_pages: int = 0
    swapped_in_pages: int = 0
    checksum_failures: int = 0


NOTHING_BELOW = TierStats()


class Tiers:
    """The tiers of one engine. Pages are `page_tokens` tokens and `page_bytes` bytes; used by one thread."""

    def __init__(
        self,
        *,
        page_tokens: int,
        page_bytes: int,
        host: HostTier | None = None,
        swap: DiskTier | None = None,
        cache: DiskTier | None = None,
    ) -> None:
        self.costs = Costs()
        self._page_tokens = page_tokens
        self._page_bytes = page_bytes
        self._host = host
        self._cache = cache
        self._disks = [disk for disk in (swap, cache) if disk is not None]
        self._tiers: list[HostTier | DiskTier] = [*([host] if host is not None else []), *self._disks]
        self._swapped_out = self._swapped_in = self._failures = 0

    def save(self, link: Link, read_rows: Callable[[], Rows]) -> None:
        """A page leaves the cache: keep it, unless a tier has it already. `read_rows` is called if it is wanted."""
        for tier in self._tiers:
            if tier.find(link.digest) is not None:
                tier.touch(link.digest)
                return
        self._swapped_out += 1
        page = SavedPage.of(link, read_rows())
        leaving_host = self._host.put(page) if self._host is not None else [page]
        for leaving in leaving_host:
            self._to_disk(leaving)

    def keep(self, link: Link, read_rows: Callable[[], Rows]) -> None:
        """A page was computed: write it to the persistent tier, unless it is there."""
        if self._cache is not None and self._cache.find(link.digest) is None:
            self._swapped_out += 1
            self._cache.put(SavedPage.of(link, read_rows()))

    def fetch(self, link: Link) -> Fetched | None:
        """The rows of a page, to be put into the cache; None when no tier has them intact, or computing is cheaper."""
        for tier in self._tiers:
            record = tier.find(link.digest)
            if record is None or not record.is_page_of(link):
                continue
            if not self.costs.prefers_loading(tier.name, self._page_bytes, self._page_tokens):
                return None
            fetched = self._read(tier, record)
            if fetched is not None:
                return fetched
        return None

    def stats(self) -> TierStats:
        """Counts so far, and what the tiers hold."""
        return TierStats(
            host_pages=len(self._host) if self._host is not None else 0,
            host_bytes=self._host.size_bytes if self._host is not None else 0,
            disk_pages=sum(len(disk) for disk in self._disks),
            disk_bytes=sum(disk.size_bytes for disk in self._disks),
            swapped_out_pages=self._swapped_out,
            swapped_in_pages=self._swapped_in,
            checksum_failures=self._failures + sum(disk.damaged_pages for disk in self._disks),
        )

    def check(self) -> None:
        """Raise PageAccountingError unless every tier's books agree with what it holds."""
        for tier in self._tiers:
            tier.check()

    def recover(self) -> None:
        """Put the books in order after an interruption at an unknown point; what was committed to a disk stays."""
        for tier in self._tiers:
            try:
                tier.check()
            except PageAccountingError:
                tier.reset()

    def flush(self) -> None:
        """Return when all pages taken so far are on their disks."""
        for disk in self._disks:
            disk.flush()

    def close(self) -> None:
        """Write what waits, close the files and let others use the folders. Nothing happens the second time."""
        for disk in self._disks:
            disk.close()

    def _read(self, tier: HostTier | DiskTier, record: StoredPage) -> Fetched | None:
        begin = time.perf_counter()
        rows = tier.read(record.digest)
        if rows is None or not record.fits(rows):
            tier.drop(record.digest)
            log = logger.debug if self._failures else logger.warning
            log("a page of the %s tier is damaged: it is computed again, as will be others like it", tier.name)
            self._failures += 1
            return None
        self.costs.loaded(tier.name, len(rows), time.perf_counter() - begin)
        self._swapped_in += 1
        return Fetched(rows, tier.name)

    def _to_disk(self, page: SavedPage) -> None:
        if self._disks and all(disk.find(page.record.digest) is None for disk in self._disks):
            self._disks[0].put(page)


def open_tiers(
    options: TierOptions, *, identity: bytes, page_tokens: int, page_bytes: int, about: Mapping[str, str | int]
) -> Tiers | None:
    """The tiers that `options` ask for, None when they ask for none.

    identity: whose rows they are, as the prefix index has it; about: the same for people
    Raises OptionError when a folder cannot be used or a tier has no room for one page.
    """
    if not options.any:
        return None
    host = swap = cache = None
    if options.host_cache_bytes:
        check_room("host_cache_bytes", page_bytes, options.host_cache_bytes)
        host = HostTier(options.host_cache_bytes)
    if options.swap_dir:
        swap = open_swap(Path(options.swap_dir), page_bytes=page_bytes, limit_bytes=options.swap_bytes)
    try:
        if options.cache_dir:
            folder, limit_bytes = Path(options.cache_dir), options.cache_dir_bytes
            cache = open_cache(folder, identity=identity, page_bytes=page_bytes, limit_bytes=limit_bytes, about=about)
    except BaseException:
        if swap is not None:
            swap.close()
        raise
    return Tiers(page_tokens=page_tokens, page_bytes=page_bytes, host=host, swap=swap, cache=cache)
