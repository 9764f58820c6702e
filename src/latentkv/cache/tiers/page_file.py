"""A file of equal slots, one page each, at `slot * page_bytes`. Knows neither what the pages are nor who needs them.

Nothing is synchronised to the device: an interrupted write is noticed by the page's checksum, which is kept elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from latentkv.cache.tiers.record import Rows


class PageFile:
    """Slots of `page_bytes`. `unlinked` takes the file's name away at once, so that it vanishes with the process."""

    def __init__(self, path: Path, page_bytes: int, *, unlinked: bool = False) -> None:
        self.page_bytes = page_bytes
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if unlinked else 0)
        self._file: int | None = os.open(path, flags, 0o600)
        if unlinked:
            path.unlink()

    @property
    def num_slots(self) -> int:
        """Whole slots that the file has now."""
        return os.fstat(self._descriptor()).st_size // self.page_bytes

    def truncate(self, num_slots: int) -> None:
        """Cut off what is beyond `num_slots`; a shorter file stays as it is."""
        if os.fstat(self._descriptor()).st_size > num_slots * self.page_bytes:
            os.ftruncate(self._descriptor(), num_slots * self.page_bytes)

    def read(self, slot: int) -> Rows | None:
        """The bytes of a slot; None when the file ends before it does, or cannot be read there."""
        rows = Rows(self.page_bytes)
        try:
            got = os.preadv(self._descriptor(), [rows], slot * self.page_bytes)
        except OSError:
            return None
        return rows if got == self.page_bytes else None

    def write(self, slot: int, rows: Rows) -> None:
        """Fill a slot. Raises OSError, for instance when the disk is full; the slot then holds anything."""
        done = 0
        while done < len(rows):
            done += os.pwrite(self._descriptor(), memoryview(rows)[done:], slot * self.page_bytes + done)

    def close(self) -> None:
        """Close the file; nothing happens to a closed one."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _descriptor(self) -> int:
        if self._file is None:
            raise OSError("the page file is closed")
        return self._file
