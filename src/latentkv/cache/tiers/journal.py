"""Which slots of a page file hold which pages, in an SQLite database beside it.

SQLite because a crash in the middle of a write, from one process or the whole machine, leaves it as it was before or
after; with the write-ahead log a commit costs some 50 microseconds. It answers no question while an engine runs: it is
read when a folder is opened and written behind the pages, in the order of `forget`, the slot's bytes, `note`. What it
says may still be wrong after a power cut or on a bad disk: the page's checksum decides.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from latentkv.cache.tiers.record import StoredPage

FILE_NAME = "index.sqlite3"
# What a damaged database, or a full disk, may raise; a ValueError where text that is none is to be decoded.
DAMAGED = (sqlite3.Error, ValueError)
_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (
    slot INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, token_ids BLOB NOT NULL, checksum BLOB NOT NULL,
    rank INTEGER NOT NULL
);
"""
_NEWEST = "(SELECT COALESCE(MAX(rank), 0) + 1 FROM pages)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A page and where it lies."""

    slot: int
    page: StoredPage


class Journal:
    """The index of one folder. Any method raises one of DAMAGED when the database is damaged or the disk full.

    Opened by one thread, then used by one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_TABLES)
        except DAMAGED:
            self._database.close()
            raise

    def describe(self, about: Mapping[str, str | int]) -> None:
        """Say what the pages are, for people and for `summary`."""
        rows = [*about.items(), ("used", int(time.time()))]
        self._database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def entries(self) -> list[Entry]:
        """All pages, the longest unused first. Raises one of DAMAGED for a damaged database."""
        (verdict,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = self._database.execute("SELECT slot, digest, token_ids, checksum FROM pages ORDER BY rank")
        # A damaged column need not have the type it was declared with, nor the key be one.
        return [
            Entry(slot, StoredPage(*page))
            for slot, *page in rows
            if isinstance(slot, int) and all(isinstance(part, bytes) for part in page)
        ]

    def note(self, slot: int, page: StoredPage) -> None:
        """`slot` now holds `page`."""
        self._database.execute(
            f"INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?, {_NEWEST})",
            (slot, page.digest, page.token_ids, page.checksum),
        )

    def forget(self, slot: int) -> None:
        """`slot` holds nothing that counts any more."""
        self._database.execute("DELETE FROM pages WHERE slot = ?", (slot,))

    def rank(self, digests: Iterable[bytes]) -> None:
        """Remember which pages were used last; `digests` begins with the longest unused."""
        self._database.execute("BEGIN")
        self._database.executemany("UPDATE pages SET rank = ? WHERE digest = ?", enumerate(digests, start=1))
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the database; everything noted is in it already."""
        self._database.close()


@dataclass(frozen=True, slots=True)
class Summary:
    """What a folder says about itself: `about` as it was described, and its number of pages."""

    about: dict[str, str | int]
    pages: int


def summary(folder: Path) -> Summary:
    """Read a folder's description without changing it. Raises one of DAMAGED when it has none or it is damaged."""
    with closing(sqlite3.connect(f"file:{(folder / FILE_NAME).absolute().as_posix()}?mode=ro", uri=True)) as database:
        about = dict(database.execute("SELECT name, value FROM about").fetchall())
        (pages,) = database.execute("SELECT COUNT(*) FROM pages").fetchone()
    return Summary(about, pages)
