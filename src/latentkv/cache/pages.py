"""Who holds which page of the cache: counting only, no tensors and no token ids.

Every page is in exactly one state:

    free    nobody holds it and nothing in it is worth keeping
    held    one or more sequences hold it (its reference count)
    cached  nobody holds it, but a prefix index still knows its contents: reusable by `share`, evictable by `allocate`

Whoever indexes pages by their contents says so with `keep`; it is told through `on_evict` when such a page is reused.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, PAGE_TOKENS
from latentkv.errors import OptionError, OutOfPagesError, sentence


class PageAccountingError(RuntimeError):
    """Pages were released twice, shared while free, or lost: a defect inside latentkv, never the user's fault."""


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy-on-write: copy page `source` to page `target` before anything else is allocated or written."""

    source: int
    target: int


class PageAllocator:
    """Reference counts of `num_pages` pages of `page_tokens` rows each.

    `on_evict(page)` is called when a cached page is given to a new owner. Raises OptionError for a pool without pages
    or a page size that is not a power of two from 1 to 256.
    """

    def __init__(
        self,
        num_pages: int,
        *,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        on_evict: Callable[[int], None] | None = None,
    ) -> None:
        if num_pages < 1:
            raise OptionError(sentence("num_pages", expected="1 or more", got=num_pages))
        if page_tokens not in PAGE_TOKENS:
            raise OptionError(sentence("page_tokens", expected="a power of two from 1 to 256", got=page_tokens))
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._on_evict = on_evict
        self._references = [0] * num_pages
        self._free = list(reversed(range(num_pages)))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def cached_pages(self) -> int:
        """Pages that nobody holds but that are kept for their contents."""
        return len(self._cached)

    @property
    def held_pages(self) -> int:
        """Pages that at least one sequence holds."""
        return self.num_pages - self.free_pages - self.cached_pages

    @property
    def available_pages(self) -> int:
        """Pages that `allocate` can give now: free ones, and cached ones it may evict."""
        return self.free_pages + self.cached_pages

    @property
    def kept_pages(self) -> frozenset[int]:
        """Pages, held or cached, whose contents an index knows."""
        return frozenset(self._kept)

    def references(self, page: int) -> int:
        """How many holders `page` has."""
        return self._references[self._known(page)]

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one holder each, all or none; evicts the longest unused cached pages when it must.

        Raises OutOfPagesError when fewer are available.
        """
        if count < 0:
            raise PageAccountingError(f"cannot allocate {count} pages")
        if count > self.available_pages:
            raise OutOfPagesError(sentence("pages to allocate", expected=f"at most {self.available_pages}", got=count))
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each of `pages`, which are held or cached. Raises PageAccountingError for a free one."""
        for page in pages:
            if self._references[self._known(page)] == 0 and page not in self._cached:
                raise PageAccountingError(f"page {page} is free: there is nothing to share")
        for page in pages:
            self._cached.pop(page, None)
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each of `pages`; without holders a page becomes cached if it is kept, else free.

        Later pages count as longer unused than earlier ones, so that the end of a prefix is evicted before its
        beginning. Raises PageAccountingError, and changes nothing, when a page has fewer holders than releases.
        """
        for page, times in Counter(pages).items():
            if self._references[self._known(page)] < times:
                raise PageAccountingError(f"page {page} has {self._references[page]} holders, released {times} times")
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._retire(page)

    def keep(self, pages: Iterable[int]) -> None:
        """An index knows the contents of these held pages now: cache them when nobody holds them any more."""
        for page in pages:
            if self._references[self._known(page)] == 0:
                raise PageAccountingError(f"page {page} is not held: its contents cannot be kept")
            self._kept.add(page)

    def make_writable(self, page: int) -> PageCopy | None:
        """Let one holder of `page` write to it: None if it may at once, else a copy to make and to hold instead.

        A page is copied when others hold it or an index knows its contents. The holder's reference moves to the
        copy. Raises OutOfPagesError, and changes nothing, when there is no page to copy to.
        """
        if self._references[self._known(page)] == 0:
            raise PageAccountingError(f"page {page} is not held: nobody may write to it")
        if self._references[page] == 1 and page not in self._kept:
            return None
        (target,) = self.allocate(1)
        self.release([page])
        return PageCopy(source=page, target=target)

    def check(self) -> None:
        """Raise PageAccountingError unless every page is in exactly one state and the counts add up."""
        total = self.free_pages + self.held_pages + self.cached_pages
        held = {page for page, references in enumerate(self._references) if references > 0}
        problems = {
            "free + held + cached != total": total != self.num_pages or len(held) != self.held_pages,
            "a page is listed as free twice": len(set(self._free)) != len(self._free),
            "a page has two states": bool(held & set(self._free) or held & set(self._cached))
            or not set(self._free).isdisjoint(self._cached),
            "a negative reference count": min(self._references) < 0,
            "a cached page that is not kept": not self._kept.issuperset(self._cached),
            "a free page that is kept": not self._kept.isdisjoint(self._free),
        }
        found = [problem for problem, present in problems.items() if present]
        if found:
            raise PageAccountingError(
                f"{'; '.join(found)}: {self.num_pages} pages, {len(self._free)} free, {len(held)} with holders, "
                f"{len(self._cached)} cached, {len(self._kept)} kept"
            )

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self._kept.discard(page)
        if self._on_evict is not None:
            self._on_evict(page)
        return page

    def _retire(self, page: int) -> None:
        if page in self._kept:
            self._cached[page] = None
        else:
            self._free.append(page)

    def _known(self, page: int) -> int:
        if not 0 <= page < self.num_pages:
            raise PageAccountingError(f"page {page} does not exist: there are {self.num_pages}")
        return page
