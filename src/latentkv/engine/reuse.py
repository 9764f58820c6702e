"""What of a sequence need not be computed: found in the cache, brought back from a lower tier, or copied.

Who starts or comes back takes, in this order: pages of its beginning that are in the cache, pages from lower tiers,
copied rows of a page that begins as it goes on. The rest is computed. A preempted sequence needs no swapping of its
own: its full pages are found like those of any prefix, and loaded or computed again, whichever is quicker.

Knows neither the queue nor tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from typing import Protocol

from latentkv.cache.pages import PageAllocator
from latentkv.cache.prefix import NO_MATCH, Link, Match, PrefixIndex
from latentkv.cache.tiers.record import Rows
from latentkv.cache.tiers.tiers import Fetched
from latentkv.engine.state import Sequence


class Mover(Protocol):
    """Who moves the bytes of pages; everything is done when a call returns (engine/mover.py)."""

    def copy(self, source: int, target: int) -> None:
        """Copy page `source` to page `target`."""
        ...

    def keep(self, link: Link, page: int) -> None:
        """`page` is complete and holds `link`."""
        ...

    def fetch(self, link: Link) -> Fetched | None:
        """The rows of a page from a lower tier; None when computing them is all that is left, or quicker."""
        ...

    def place(self, rows: Rows, page: int) -> None:
        """Put rows that were fetched into `page`."""
        ...


class Reuse:
    """Gives sequences their pages from what is known, and makes known what they have computed.

    prefix: None where nothing is shared; mover: None where no bytes are moved (then only whole pages are shared)
    """

    def __init__(self, pages: PageAllocator, prefix: PrefixIndex | None, mover: Mover | None) -> None:
        self._pages = pages
        self._prefix = prefix
        self._mover = mover

    def match(self, token_ids: Many[int]) -> Match:
        """The pages in the cache that hold the longest known beginning."""
        return self._prefix.match(token_ids) if self._prefix is not None else NO_MATCH

    def start(self, sequence: Sequence, found: Match) -> Counter[str]:
        """Give `sequence` pages for all of its tokens and the rows that are known; tokens by where they were found.

        The pages of `found` have been shared already, and pages for all other tokens have to be available. Places are
        "device", "host", "swap" and "cache".
        """
        sequence.pages = list(found.pages)
        sequence.prefix = found.tail
        sequence.computed = len(found.pages) * self._pages.page_tokens
        hits = Counter(device=sequence.computed)
        hits += self._take_following(sequence)
        sequence.pages += self._pages.allocate(self._pages.pages_for(len(sequence.token_ids)) - len(sequence.pages))
        hits["device"] += self._copy_beginning(sequence)
        return hits

    def give_back(self, sequence: Sequence) -> None:
        """Take the pages of a sequence that ends or gives way; what is in full ones stays known."""
        self._pages.release(sequence.pages)
        sequence.pages = []
        sequence.prefix = None
        sequence.computed = 0

    def index(self, sequence: Sequence) -> None:
        """Make known the pages that `sequence` has completed."""
        if self._prefix is None:
            return
        full = sequence.computed // self._pages.page_tokens
        if full <= (sequence.prefix.depth if sequence.prefix is not None else 0):
            return
        inserted = self._prefix.insert(sequence.token_ids, sequence.pages[:full], after=sequence.prefix)
        self._pages.keep(inserted.pages)
        sequence.prefix = inserted.tail
        if self._mover is not None:
            for link, page in zip(inserted.links, inserted.pages, strict=True):
                self._mover.keep(link, page)

    def _take_following(self, sequence: Sequence) -> Counter[str]:
        """Bring back the pages that follow, as far as they go without a gap; tokens by where they were."""
        taken: Counter[str] = Counter()
        if self._mover is None or self._prefix is None:
            return taken
        for link in self._prefix.following(sequence.token_ids, sequence.prefix):
            # A page may have outlived the one before it: that one was fetched, this one is here.
            page = self._prefix.find(link)
            tier = "device"
            if page is not None:
                self._pages.share([page])
            else:
                # Fetched first: what is evicted for its page may take its place in the tier.
                fetched = self._mover.fetch(link)
                if fetched is None:
                    break
                (page,), tier = self._pages.allocate(1), fetched.tier
                self._mover.place(fetched.rows, page)
            sequence.pages.append(page)
            sequence.computed += self._pages.page_tokens
            taken[tier] += self._pages.page_tokens
        self.index(sequence)
        return taken

    def _copy_beginning(self, sequence: Sequence) -> int:
        """Copy the rows of a page that begins as this sequence goes on, into its own page; the tokens they are."""
        if self._mover is None or self._prefix is None:
            return 0
        found = self._prefix.beginning(sequence.token_ids, sequence.prefix)
        if found is None:
            return 0
        self._mover.copy(found.page, sequence.pages[sequence.computed // self._pages.page_tokens])
        sequence.computed += found.tokens
        return found.tokens
