"""A folder that one process at a time may use, and who that is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from latentkv.errors import OptionError, sentence


class FolderLock:
    """Makes `folder` if it is missing and holds it until `close`; a killed process lets go of it by itself.

    what: the option that named the folder
    Raises OptionError when the folder cannot be made or written to, or another engine uses it (its process is named).
    """

    def __init__(self, what: str, folder: Path) -> None:
        # An engine may be made in one thread and let go in another.
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        owner = folder / "owner"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            owner.write_text(f"{os.getpid()}\n")
        except Timeout as error:
            raise OptionError(
                sentence(
                    what,
                    expected="a folder that no other engine uses",
                    got=f"{folder}, in use by process {_read(owner)}",
                    remedy="End that process, or name another folder.",
                )
            ) from error
        except OSError as error:
            self._lock.release()
            raise OptionError(
                sentence(
                    what,
                    expected="a folder that can be written",
                    got=f"{folder}: {error.strerror or error}",
                    remedy="Name another folder.",
                )
            ) from error

    def close(self) -> None:
        """Let others use the folder; nothing happens the second time."""
        self._lock.release()

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Let go of the folder if what is done with it fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise


def _read(owner: Path) -> str:
    try:
        return owner.read_text().strip() or "unknown"
    except OSError:
        return "unknown"
