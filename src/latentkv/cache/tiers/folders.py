"""The folders of swap and of the persistent cache on a disk: opening, listing, clearing.

SWAP_DIR/lock, owner              who uses the folder now; the swap file has no name and dies with its process
CACHE_DIR/lock, owner             the same
CACHE_DIR/<identity>/             the pages of one model in one format; the name is a digest of everything that
                                  tells one row from another, so that no other model or version ever opens it
    index.sqlite3 (-wal, -shm)    which page is where (cache/tiers/journal.py)
    pages.bin                     the rows (cache/tiers/page_file.py)
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from latentkv.cache.tiers.disk import DiskTier
from latentkv.cache.tiers.folder_lock import FolderLock
from latentkv.cache.tiers.journal import DAMAGED, FILE_NAME, Journal, summary
from latentkv.cache.tiers.page_file import PageFile
from latentkv.errors import OptionError, sentence

logger = logging.getLogger(__name__)

# To be raised when a page is stored in another way, or the same tokens come to have other rows in the same layout.
STORE_VERSION = 1
PAGES_NAME = "pages.bin"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The pages of one model in a cache folder. `about` is empty where the index is damaged."""

    folder: Path
    about: Mapping[str, str | int]
    pages: int
    size_bytes: int


def open_swap(folder: Path, *, page_bytes: int, limit_bytes: int) -> DiskTier:
    """A swap tier. Raises OptionError as FolderLock does, or when not even one page fits."""
    check_room("swap_bytes", page_bytes, limit_bytes)
    lock = FolderLock("swap_dir", folder)
    with lock.closed_on_error():
        file = PageFile(folder / "swap.bin", page_bytes, unlinked=True)
        return DiskTier("swap", file, lock, limit_bytes=limit_bytes)


def open_cache(
    folder: Path, *, identity: bytes, page_bytes: int, limit_bytes: int, about: Mapping[str, str | int]
) -> DiskTier:
    """The persistent tier of the model with this identity. Raises OptionError as FolderLock does."""
    check_room("cache_dir_bytes", page_bytes, limit_bytes)
    lock = FolderLock("cache_dir", folder)
    own = folder / blake2b(f"{STORE_VERSION}/".encode() + identity, digest_size=16).hexdigest()
    description = {"store version": STORE_VERSION, "page bytes": page_bytes, **about}
    with lock.closed_on_error():
        _tell_of_others(folder, own)
        return _open_or_begin_anew(own, lock, description, page_bytes, limit_bytes)


def stored_models(folder: Path) -> list[StoredModel]:
    """What a cache folder holds, by name; anything that no engine put there is left out."""
    names = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}") if (path.parent / PAGES_NAME).is_file())
    return [_stored_model(own) for own in names]


def clear_cache(folder: Path) -> list[StoredModel]:
    """Delete the pages of every model; what was deleted. Raises OptionError when an engine uses the folder."""
    if not folder.is_dir():
        raise OptionError(sentence("cache folder", expected="a folder", got=f"{folder}, which is none"))
    with closing(FolderLock("cache folder", folder)):
        found = stored_models(folder)
        for model in found:
            shutil.rmtree(model.folder)
    return found


def check_room(what: str, page_bytes: int, limit_bytes: int) -> None:
    """Raise OptionError when a tier of this many bytes, by the option `what`, has no room for one page."""
    if limit_bytes < page_bytes:
        raise OptionError(sentence(what, expected=f"at least one page, {page_bytes} bytes", got=limit_bytes))


def _tell_of_others(folder: Path, own: Path) -> None:
    others = [model for model in stored_models(folder) if model.folder != own]
    same_version = [model for model in others if model.about.get("store version") == STORE_VERSION]
    other_version = [model for model in others if model not in same_version]
    for what, found, log in (("versions", other_version, logger.warning), ("models", same_version, logger.info)):
        if found:
            size_bytes = sum(model.size_bytes for model in found)
            log("%s holds %d bytes of other %s: ignored, until they are cleared", folder, size_bytes, what)


def _open_or_begin_anew(
    own: Path, lock: FolderLock, about: Mapping[str, str | int], page_bytes: int, limit_bytes: int
) -> DiskTier:
    own.mkdir(mode=0o700, exist_ok=True)  # token ids are as private as the texts they come from
    try:
        return _open(own, lock, about, page_bytes, limit_bytes)
    except DAMAGED as error:
        logger.warning("%s is damaged (%s): its pages will be computed again", own, error)
    shutil.rmtree(own)
    own.mkdir(mode=0o700)
    tier = _open(own, lock, about, page_bytes, limit_bytes)
    tier.damaged_pages += 1
    return tier


def _open(own: Path, lock: FolderLock, about: Mapping[str, str | int], page_bytes: int, limit_bytes: int) -> DiskTier:
    journal = Journal(own)
    file = PageFile(own / PAGES_NAME, page_bytes)
    try:
        journal.describe(about)
        return DiskTier("cache", file, lock, limit_bytes=limit_bytes, journal=journal)
    except DAMAGED:
        journal.close()
        file.close()
        raise


def _stored_model(own: Path) -> StoredModel:
    size_bytes = (own / PAGES_NAME).stat().st_size
    try:
        found = summary(own)
    except DAMAGED:
        return StoredModel(own, {}, 0, size_bytes)
    return StoredModel(own, found.about, found.pages, size_bytes)
