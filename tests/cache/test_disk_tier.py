"""Pages in files: what was committed comes back, what is damaged does not, and a full disk costs pages only."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tier_parts import PAGE_BYTES, cache_in, file_in, link_of, page_of, rows_of, swap_in

from latentkv.cache.tiers import folders
from latentkv.cache.tiers.disk import DiskTier
from latentkv.cache.tiers.folder_lock import FolderLock
from latentkv.cache.tiers.page_file import PageFile
from latentkv.errors import OptionError

MIB = 2**20


def held(tier: DiskTier, *numbers: int) -> list[int]:
    """Those of `numbers` whose page the tier has, intact."""
    found = []
    for number in numbers:
        link = link_of(number)
        record = tier.find(link.digest)
        rows = tier.read(link.digest)
        if record is not None and rows is not None and record.is_page_of(link) and record.fits(rows):
            assert rows == rows_of(link, page_bytes=len(rows))
            found.append(number)
    return found


@pytest.mark.parametrize("written", [False, True])
def test_pages_come_back_before_and_after_they_are_written(tmp_path: Path, written: bool) -> None:
    tier = swap_in(tmp_path)
    for number in range(6):
        tier.put(page_of(number))
    if written:
        tier.flush()
    assert held(tier, *range(6)) == [2, 3, 4, 5], "four fit, the longest unused two had to go"
    assert (len(tier), tier.size_bytes) == (4, 4 * PAGE_BYTES)
    tier.check()
    tier.close()
    tier.close()


def test_nothing_of_swap_outlives_it(tmp_path: Path) -> None:
    tier = swap_in(tmp_path)
    tier.put(page_of(1))
    tier.flush()
    assert {path.name for path in tmp_path.iterdir()} <= {"lock", "owner"}
    tier.close()
    again = swap_in(tmp_path)
    assert held(again, 1) == []
    again.close()


def test_the_next_engine_finds_the_pages_in_the_order_of_their_use(tmp_path: Path) -> None:
    first = cache_in(tmp_path)
    for number in range(4):
        first.put(page_of(number))
    assert held(first, 0) == [0]
    first.close()
    second = cache_in(tmp_path)
    second.put(page_of(4))
    assert held(second, *range(5)) == [0, 2, 3, 4], "1 was unused for longest"
    second.close()


def test_a_smaller_bound_cuts_the_file(tmp_path: Path) -> None:
    first = cache_in(tmp_path)
    for number in range(4):
        first.put(page_of(number))
    first.close()
    second = cache_in(tmp_path, pages=2)
    assert held(second, *range(4)) == [0, 1]
    assert second.damaged_pages == 0
    assert file_in(tmp_path, "pages.bin").stat().st_size == 2 * PAGE_BYTES
    second.close()


def test_a_truncated_file_costs_the_pages_beyond_its_end(tmp_path: Path) -> None:
    first = cache_in(tmp_path)
    for number in range(4):
        first.put(page_of(number))
    first.close()
    os.truncate(file_in(tmp_path, "pages.bin"), 3 * PAGE_BYTES - 1)
    second = cache_in(tmp_path)
    assert second.damaged_pages == 2
    assert held(second, *range(4)) == [0, 1]
    second.close()


def test_a_file_that_is_cut_while_it_is_open_gives_no_rows(tmp_path: Path) -> None:
    tier = cache_in(tmp_path)
    tier.put(page_of(1))
    tier.flush()
    os.truncate(file_in(tmp_path, "pages.bin"), PAGE_BYTES - 1)
    assert tier.read(link_of(1).digest) is None
    tier.close()


@pytest.mark.parametrize(
    ("name", "stride"),
    [("pages.bin", 11), ("index.sqlite3", 307), pytest.param("index.sqlite3", 5, marks=pytest.mark.slow)],
)
def test_no_flipped_bit_gives_other_rows(tmp_path: Path, name: str, stride: int) -> None:
    first = cache_in(tmp_path)
    for number in range(4):
        first.put(page_of(number))
    first.close()
    path = file_in(tmp_path, name)
    whole = path.read_bytes()
    for place in range(0, len(whole), stride):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        tier = cache_in(tmp_path)
        held(tier, *range(4))
        tier.check()
        tier.close()
        path.write_bytes(whole)


def test_an_index_that_is_no_database_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = cache_in(tmp_path)
    first.put(page_of(1))
    first.close()
    file_in(tmp_path, "index.sqlite3").write_bytes(b"no database" * 1000)
    second = cache_in(tmp_path)
    assert (held(second, 1), second.damaged_pages) == ([], 1)
    assert "is damaged" in caplog.text
    second.put(page_of(1))
    second.close()
    third = cache_in(tmp_path)
    assert held(third, 1) == [1]
    third.close()


def test_other_models_and_versions_are_ignored_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    first = cache_in(tmp_path)
    first.put(page_of(1))
    first.close()
    other = cache_in(tmp_path, identity=b"another model")
    assert held(other, 1) == []
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert f"{PAGE_BYTES} bytes of other models: ignored" in caplog.text
    other.close()
    with monkeypatch.context() as patched:
        patched.setattr(folders, "STORE_VERSION", 2)
        newer = cache_in(tmp_path)
        assert held(newer, 1) == []
        newer.close()
        assert f"{PAGE_BYTES} bytes of other versions: ignored" in caplog.text
    again = cache_in(tmp_path)
    assert held(again, 1) == [1]
    again.close()


def test_a_full_disk_is_logged_once_and_costs_pages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tier = DiskTier("swap", PageFile(Path("/dev/full"), PAGE_BYTES), FolderLock("swap_dir", tmp_path), limit_bytes=999)
    for number in range(9):
        tier.put(page_of(number))
    tier.flush()
    assert len(tier) == 0
    assert held(tier, *range(9)) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot write: [Errno 28] No space left on device" in caplog.text
    tier.check()
    tier.close()


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_tier_goes_on_with_the_room_there_turned_out_to_be(tmp_path: Path) -> None:
    tier = swap_in(tmp_path, pages=9, page_bytes=MIB)
    with files_up_to(3 * MIB):
        for number in range(6):
            tier.put(page_of(number, page_bytes=MIB))
            tier.flush()
    assert len(tier) == 3
    assert held(tier, *range(6)) == [2, 4, 5], "3 could not be written, then 0 and 1 gave way"
    tier.put(page_of(7, page_bytes=MIB))
    assert held(tier, *range(8)) == [4, 5, 7]
    tier.check()
    tier.close()


@pytest.mark.parametrize("open_tier", [swap_in, cache_in])
def test_a_folder_has_one_user_who_is_named(tmp_path: Path, open_tier: type) -> None:
    code = (
        "import sys; from pathlib import Path; from latentkv.cache.tiers.folder_lock import FolderLock\n"
        f"lock = FolderLock('x', Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OptionError, match=rf"in use by process {other.pid}\. End that process, or name another"):
            open_tier(tmp_path)
        other.kill()
    open_tier(tmp_path).close()


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"swap_dir: expected a folder that can be written, got .*file"):
        swap_in(tmp_path / "file")
    with pytest.raises(OptionError, match="cache_dir: expected a folder that can be written"):
        cache_in(Path("/proc/nothing"))
    with pytest.raises(OptionError, match=r"swap_bytes: expected at least one page, 96 bytes, got 0\."):
        swap_in(tmp_path, pages=0)
    with pytest.raises(OptionError, match="cache_dir_bytes: expected at least one page"):
        cache_in(tmp_path, pages=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match=r"swap_dir: expected a folder that can be written, got .*Permission denied"):
        swap_in(tmp_path)


def test_listing_and_clearing_touch_nothing_else(tmp_path: Path) -> None:
    for identity in (b"one", b"two"):
        tier = cache_in(tmp_path, identity=identity)
        tier.put(page_of(1))
        tier.close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.sqlite3").write_text("not a cache")
    found = folders.stored_models(tmp_path)
    assert [(model.pages, model.size_bytes, model.about["format"]) for model in found] == [(1, PAGE_BYTES, "f32")] * 2
    busy = cache_in(tmp_path, identity=b"one")
    assert len(folders.stored_models(tmp_path)) == 2, "it can be listed while it is in use"
    with pytest.raises(OptionError, match="in use by process"):
        folders.clear_cache(tmp_path)
    busy.close()
    assert len(folders.clear_cache(tmp_path)) == 2
    assert folders.stored_models(tmp_path) == []
    assert (tmp_path / "mine" / "index.sqlite3").exists()
    with pytest.raises(OptionError, match="which is none"):
        folders.clear_cache(tmp_path / "nothing")


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tier_parts import *\n"
        f"tier = cache_in(Path({str(tmp_path)!r}))\n"
        "for number in range(3): tier.put(page_of(number))\n"
        "tier.flush(); tier.put(page_of(3)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=paths, check=False)
    assert done.returncode == -9
    tier = cache_in(tmp_path)
    assert held(tier, *range(4))[:3] == [0, 1, 2]
    tier.close()


def test_a_tier_begins_again_from_what_is_on_the_disk(tmp_path: Path) -> None:
    tier = cache_in(tmp_path)
    for number in range(3):
        tier.put(page_of(number))
    tier._records.popitem()
    tier.reset()
    tier.check()
    assert held(tier, *range(3)) == [0, 1, 2]
    tier.close()


def test_the_journal_is_an_ordinary_database(tmp_path: Path) -> None:
    tier = cache_in(tmp_path)
    tier.put(page_of(1))
    tier.close()
    database = sqlite3.connect(file_in(tmp_path, "index.sqlite3"))
    assert database.execute("SELECT slot, digest FROM pages").fetchall() == [(0, link_of(1).digest)]
    database.close()
