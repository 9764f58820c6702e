"""One page outside the cache: whose rows they are, and a checksum that tells whether they are still the same.

The checksum is xxh3 with 128 bits. It has to notice damage (a flipped bit, half of a write, rows of another page), not
an attacker: who can change a page can change what stands beside it, too. xxh3 reads memory about as fast as copying
does, so that checking costs no more than moving; a cryptographic digest would take several times as long.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import xxhash

from latentkv.cache.prefix import Link

# The rows of one page in every layer, as they lie in the cache.
Rows = bytearray


@dataclass(frozen=True, slots=True)
class StoredPage:
    """What is kept beside a page's rows.

    digest:    of its tokens and of all before them (cache/prefix.py): the name it is found by
    token_ids: its own tokens, int64 in the machine's order; compared when the page is asked for
    checksum:  over digest, token ids and rows
    """

    digest: bytes
    token_ids: bytes
    checksum: bytes

    def is_page_of(self, link: Link) -> bool:
        """Whether the tokens are those of `link`, not only the digest."""
        return self.digest == link.digest and self.token_ids == _packed(link)

    def fits(self, rows: Rows) -> bool:
        """Whether these are the rows the record was made for, undamaged."""
        return checksum(self.digest, self.token_ids, rows) == self.checksum


@dataclass(frozen=True, slots=True)
class SavedPage:
    """A page outside the cache: its record and its rows."""

    record: StoredPage
    rows: Rows

    @staticmethod
    def of(link: Link, rows: Rows) -> SavedPage:
        """The page of `link`, whose rows these are."""
        token_ids = _packed(link)
        return SavedPage(StoredPage(link.digest, token_ids, checksum(link.digest, token_ids, rows)), rows)


def _packed(link: Link) -> bytes:
    return array("q", link.token_ids).tobytes()


def checksum(digest: bytes, token_ids: bytes, rows: Rows) -> bytes:
    """16 bytes over all three."""
    state = xxhash.xxh3_128(digest)
    state.update(token_ids)
    state.update(rows)
    return state.digest()
