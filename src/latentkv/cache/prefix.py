"""Which full pages already hold a given beginning of a token sequence. Knows ids and page numbers, no tensors.

A page is found by a digest of its own token ids and of everything before it (a chain), so equal beginnings of
different requests share pages. The chain starts from the identity of the model and cache format: rows of one model are
never taken for another's. A digest only leads to a candidate; its token ids, and those before it, are then compared.

Holding and evicting pages is the business of cache/pages.py: the caller tells it which pages `insert` took (`keep`),
and forwards its evictions to `forget`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS

# Pages that go on with the same token are compared up to this many; more would take longer than they save.
MOST_COMPARED = 64


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


@dataclass(slots=True, eq=False)
class Link:
    """One full page of token ids in the chain that leads to it. Made by PrefixIndex only."""

    digest: bytes
    token_ids: tuple[int, ...]
    parent: Link | None
    depth: int


@dataclass(frozen=True, slots=True)
class Match:
    """Pages that hold a prompt's beginning, in order, and the chain up to the last of them (None when empty)."""

    pages: tuple[int, ...]
    tail: Link | None


@dataclass(frozen=True, slots=True)
class Inserted:
    """Pages the index took (to be kept), what they hold, and the chain up to the last full page, to continue from."""

    pages: tuple[int, ...]
    links: tuple[Link, ...]
    tail: Link | None


@dataclass(frozen=True, slots=True)
class Beginning:
    """A page whose first `tokens` rows are those wanted."""

    page: int
    tokens: int


NO_MATCH = Match((), None)


class PrefixIndex:
    """Full pages of `page_tokens` token ids, by content; `identity` says whose rows they are.

    `digest` makes the chain's digests from bytes; results are the same for any function, only slower for a poor one.
    """

    def __init__(
        self,
        *,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        identity: bytes,
        digest: Callable[[bytes], bytes] = _digest,
    ) -> None:
        self.page_tokens = page_tokens
        self._digest = digest
        self._root = digest(identity)
        self._entries: dict[bytes, tuple[Link, int]] = {}
        self._digest_of: dict[int, bytes] = {}
        self._following: dict[tuple[bytes, int], dict[bytes, None]] = {}

    @property
    def pages(self) -> frozenset[int]:
        """All pages the index knows."""
        return frozenset(self._digest_of)

    def match(self, token_ids: Sequence[int]) -> Match:
        """The longest known beginning of `token_ids` in full pages, always leaving at least one token to compute.

        (The logits of the last token are needed to sample, and only computing it gives them.)
        """
        pages: list[int] = []
        tail: Link | None = None
        for number in range((len(token_ids) - 1) // self.page_tokens):
            link = self._link(token_ids, number, tail)
            entry = self._entries.get(link.digest)
            if entry is None or not _same_prefix(entry[0], link):
                break
            # From here on the entry's chain is the one just verified, so that the next comparison is short.
            entry[0].parent = tail
            tail = entry[0]
            pages.append(entry[1])
        return Match(tuple(pages), tail)

    def insert(self, token_ids: Sequence[int], pages: Sequence[int], *, after: Link | None = None) -> Inserted:
        """Index every full page of `token_ids`, whose rows are in `pages`; continues `after` a former insert or match.

        A page whose contents are known already under another number is left out, as is one whose digest is taken.
        """
        taken: list[int] = []
        links: list[Link] = []
        tail = after
        full = min(len(token_ids) // self.page_tokens, len(pages))
        for number in range(0 if after is None else after.depth, full):
            tail = self._link(token_ids, number, tail)
            if tail.digest not in self._entries and pages[number] not in self._digest_of:
                self._entries[tail.digest] = (tail, pages[number])
                self._following.setdefault(self._branch(tail.parent, tail.token_ids[0]), {})[tail.digest] = None
                self._digest_of[pages[number]] = tail.digest
                taken.append(pages[number])
                links.append(tail)
        return Inserted(tuple(taken), tuple(links), tail)

    def following(self, token_ids: Sequence[int], after: Link | None) -> Iterator[Link]:
        """Links of the full pages after `after`, known or not, again leaving at least one token to compute."""
        for number in range(after.depth if after is not None else 0, (len(token_ids) - 1) // self.page_tokens):
            after = self._link(token_ids, number, after)
            yield after

    def find(self, link: Link) -> int | None:
        """The page that holds `link`, whether or not the pages before it are known."""
        entry = self._entries.get(link.digest)
        if entry is None or not _same_prefix(entry[0], link):
            return None
        entry[0].parent = link.parent
        return entry[1]

    def beginning(self, token_ids: Sequence[int], after: Link | None) -> Beginning | None:
        """A known page after `after` that begins as `token_ids` go on there, the longest of those looked at.

        Leaves at least one token to compute, and never answers with no token in common.
        """
        done = (after.depth if after is not None else 0) * self.page_tokens
        own = tuple(token_ids[done : min(done + self.page_tokens, len(token_ids) - 1)])
        best: Beginning | None = None
        if not own:
            return best
        for digest in islice(self._following.get(self._branch(after, own[0]), ()), MOST_COMPARED):
            link, page = self._entries[digest]
            tokens = _common(link.token_ids, own)
            if tokens > (best.tokens if best is not None else 0) and _same_prefix(link.parent, after):
                best = Beginning(page, tokens)
        return best

    def forget(self, page: int) -> Link | None:
        """Drop `page`, whose rows are about to be overwritten; what it held, or None when it is not known."""
        digest = self._digest_of.pop(page, None)
        if digest is None:
            return None
        link, _ = self._entries.pop(digest)
        branch = self._branch(link.parent, link.token_ids[0])
        del self._following[branch][digest]
        if not self._following[branch]:
            del self._following[branch]
        return link

    def _branch(self, parent: Link | None, token_id: int) -> tuple[bytes, int]:
        return (self._root if parent is None else parent.digest, token_id)

    def _link(self, token_ids: Sequence[int], number: int, parent: Link | None) -> Link:
        begin = number * self.page_tokens
        own = tuple(token_ids[begin : begin + self.page_tokens])
        before = self._root if parent is None else parent.digest
        return Link(self._digest(before + array("q", own).tobytes()), own, parent, number + 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _same_prefix(one: Link | None, other: Link | None) -> bool:
    while one is not other:
        if one is None or other is None or one.token_ids != other.token_ids:
            return False
        one, other = one.parent, other.parent
    return True
