"""Pages with rows that follow from their tokens, for tests of what holds pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentkv.cache.prefix import Link, PrefixIndex
from latentkv.cache.tiers.disk import DiskTier
from latentkv.cache.tiers.folders import open_cache, open_swap
from latentkv.cache.tiers.record import Rows, SavedPage

PAGE_TOKENS = 2
PAGE_BYTES = 96


def links_of(token_ids: Sequence[int], *, identity: bytes = b"model") -> list[Link]:
    """The chain of all full pages of `token_ids`."""
    return list(PrefixIndex(page_tokens=PAGE_TOKENS, identity=identity).following([*token_ids, 0], None))


def link_of(number: int) -> Link:
    """A page of its own for each number."""
    return links_of([number, number + 1])[0]


def rows_of(link: Link, *, page_bytes: int = PAGE_BYTES) -> Rows:
    """What the rows of this page must be."""
    return Rows((link.digest * (page_bytes // len(link.digest) + 1))[:page_bytes])


def page_of(number: int, *, page_bytes: int = PAGE_BYTES) -> SavedPage:
    link = link_of(number)
    return SavedPage.of(link, rows_of(link, page_bytes=page_bytes))


def swap_in(folder: Path, *, pages: int = 4, page_bytes: int = PAGE_BYTES) -> DiskTier:
    return open_swap(folder, page_bytes=page_bytes, limit_bytes=pages * page_bytes)


def cache_in(folder: Path, *, pages: int = 4, page_bytes: int = PAGE_BYTES, identity: bytes = b"model") -> DiskTier:
    limit_bytes = pages * page_bytes
    return open_cache(
        folder, identity=identity, page_bytes=page_bytes, limit_bytes=limit_bytes, about={"format": "f32"}
    )


def file_in(folder: Path, name: str) -> Path:
    """The one file of this name that a cache folder with one model has."""
    (found,) = folder.glob(f"*/{name}")
    return found
