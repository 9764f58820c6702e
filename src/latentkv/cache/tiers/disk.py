"""Pages on a disk: a page file up to a bound, written behind the engine's back, with or without a journal.

With a journal the pages outlive the process. All bookkeeping happens in the engine's thread; the writer's thread gets
slot and rows and does nothing but write them, in order, so that a slot is never read while another page is on its way
into it: until a page is written it is read from memory.
"""

from __future__ import annotations

import logging
from functools import partial

from latentkv.cache.tiers.books import SlotBooks
from latentkv.cache.tiers.folder_lock import FolderLock
from latentkv.cache.tiers.journal import DAMAGED, Journal
from latentkv.cache.tiers.page_file import PageFile
from latentkv.cache.tiers.record import Rows, SavedPage, StoredPage
from latentkv.cache.tiers.writer import Job, Writer

logger = logging.getLogger(__name__)

# Pages that wait to be written; the memory beyond all bounds that the user set.
WAITING_BYTES = 64 * 2**20


class DiskTier:
    """At most `limit_bytes` of rows in `file`.

    A page that cannot be written is forgotten, and the tier goes on with as much room as there turned out to be: a full
    disk costs pages, never a request. It is logged the first time.
    """

    def __init__(
        self, name: str, file: PageFile, lock: FolderLock, *, limit_bytes: int, journal: Journal | None = None
    ) -> None:
        self.name = name
        self.damaged_pages = 0
        self._file = file
        self._lock = lock
        self._journal = journal
        self._num_slots = limit_bytes // file.page_bytes
        self._books = SlotBooks(self._num_slots)
        self._records: dict[bytes, StoredPage] = {}
        self._waiting: dict[bytes, SavedPage] = {}
        self._writer = Writer(name, WAITING_BYTES)
        self._closed = self._failed = False
        self._load()

    def __len__(self) -> int:
        return len(self._books)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows held."""
        return len(self._books) * self._file.page_bytes

    def find(self, digest: bytes) -> StoredPage | None:
        """The record of a page that is here."""
        return self._records.get(digest)

    def put(self, page: SavedPage) -> None:
        """Take a page that is not here yet; the longest unused one gives way when the tier is full."""
        self._note(self._writer.finished())
        digest = page.record.digest
        claim = self._books.claim(digest)
        if claim is None:
            return
        if claim.displaced is not None:
            del self._records[claim.displaced]
        self._records[digest] = page.record
        self._waiting[digest] = page
        self._note(self._writer.give(page, partial(self._write, claim.slot, page)))

    def read(self, digest: bytes) -> Rows | None:
        """The rows of a page, which stays here; None when it is not here or cannot be read."""
        slot = self._books.slot(digest)
        if slot is None:
            return None
        self._books.touch(digest)
        waiting = self._waiting.get(digest)
        return waiting.rows if waiting is not None else self._file.read(slot)

    def touch(self, digest: bytes) -> None:
        """Count a page that is here as just used."""
        self._books.touch(digest)

    def drop(self, digest: bytes) -> None:
        """Forget a page, if it is here."""
        if self._records.pop(digest, None) is not None:
            self._books.drop(digest)

    def flush(self) -> None:
        """Return when everything taken so far is written, or has failed to be."""
        self._note(self._writer.finished(wait=True))

    def close(self) -> None:
        """Write what waits, remember in which order pages were used, close the files and let go of the folder."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        self._writer.close()
        if self._journal is not None:
            try:
                self._journal.rank(self._books)
            except DAMAGED as error:
                self._report(error)
            self._journal.close()
        self._file.close()
        self._lock.close()

    def check(self) -> None:
        """Raise PageAccountingError unless slots and records agree."""
        self._books.check(self._records)

    def reset(self) -> None:
        """Begin again from what is on the disk, after an interruption that left the books in disorder."""
        self.flush()
        self._waiting.clear()
        try:
            self._load()
        except DAMAGED as error:
            self._books, self._records = SlotBooks(0), {}
            self._report(error)

    def _load(self) -> None:
        entries = self._journal.entries() if self._journal is not None else []
        present = self._file.num_slots
        allowed = [entry for entry in entries if 0 <= entry.slot < self._num_slots]
        held = [entry for entry in allowed if entry.slot < present]
        self.damaged_pages += len(allowed) - len(held)
        self._file.truncate(self._num_slots)
        self._books = SlotBooks(self._num_slots)
        # A damaged index may list a slot twice.
        by_slot = {entry.slot: entry.page for entry in held}
        self._books.restore((page.digest, slot) for slot, page in by_slot.items())
        self._records = {page.digest: page for page in by_slot.values()}

    def _write(self, slot: int, page: SavedPage) -> None:
        """Runs in the writer's thread. Until its last line the journal claims nothing about the slot."""
        if self._journal is not None:
            self._journal.forget(slot)
        self._file.write(slot, page.rows)
        if self._journal is not None:
            self._journal.note(slot, page.record)

    def _note(self, jobs: list[Job]) -> None:
        for job in jobs:
            digest = job.page.record.digest
            if self._waiting.get(digest) is job.page:
                del self._waiting[digest]
            error = job.future.exception()
            if error is None:
                continue
            if not isinstance(error, (OSError, *DAMAGED)):
                raise error
            self._report(error)
            if self._records.get(digest) is job.page.record:
                self.drop(digest)
            self._books.shrink()

    def _report(self, error: BaseException) -> None:
        log = logger.debug if self._failed else logger.warning
        self._failed = True
        log("the %s tier cannot write: %s. It goes on with the room it has (%d pages).", self.name, error, len(self))
