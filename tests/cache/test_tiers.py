"""All tiers together, used at random and damaged: what comes back is what was saved, or nothing."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tier_parts import PAGE_BYTES, PAGE_TOKENS, link_of, links_of, rows_of

from latentkv.cache.pages import PageAccountingError
from latentkv.cache.prefix import Link
from latentkv.cache.tiers.options import TierOptions
from latentkv.cache.tiers.tiers import Tiers, open_tiers
from latentkv.errors import OptionError


def make(folder: Path | None = None, *, host: int = 0, swap: int = 0, cache: int = 0, identity: bytes = b"m") -> Tiers:
    """Tiers with room for this many pages each."""
    options = TierOptions(
        host_cache_bytes=host * PAGE_BYTES,
        swap_dir=folder / "swap" if folder and swap else None,
        swap_bytes=swap * PAGE_BYTES,
        cache_dir=folder / "cache" if folder and cache else None,
        cache_dir_bytes=cache * PAGE_BYTES,
    )
    tiers = open_tiers(options, identity=identity, page_tokens=PAGE_TOKENS, page_bytes=PAGE_BYTES, about={})
    assert tiers is not None
    return tiers


def save(tiers: Tiers, *numbers: int) -> None:
    for number in numbers:
        tiers.save(link_of(number), lambda number=number: rows_of(link_of(number)))


def fetch(tiers: Tiers, number: int) -> str | None:
    """Which tier the page came from, with the right rows."""
    fetched = tiers.fetch(link_of(number))
    assert fetched is None or fetched.rows == rows_of(link_of(number))
    return fetched.tier if fetched is not None else None


def test_no_options_no_tiers() -> None:
    assert open_tiers(TierOptions(), identity=b"", page_tokens=1, page_bytes=1, about={}) is None


def test_pages_move_down_and_back(tmp_path: Path) -> None:
    tiers = make(tmp_path, host=2, swap=2)
    save(tiers, 0, 1, 2, 3, 4)
    stats = tiers.stats()
    assert (stats.host_pages, stats.host_bytes, stats.disk_pages, stats.disk_bytes) == (2, 192, 2, 192)
    assert [fetch(tiers, number) for number in range(5)] == [None, "swap", "swap", "host", "host"]
    assert [fetch(tiers, number) for number in range(5)] == [None, "swap", "swap", None, None], "host pages moved up"
    stats = tiers.stats()
    assert (stats.swapped_out_pages, stats.swapped_in_pages, stats.checksum_failures) == (5, 6, 0)
    tiers.close()


def test_what_a_tier_has_is_not_saved_again(tmp_path: Path) -> None:
    tiers = make(tmp_path, host=2, cache=4)
    tiers.keep(link_of(1), lambda: rows_of(link_of(1)))
    save(tiers, 1)
    stats = tiers.stats()
    assert (stats.host_pages, stats.disk_pages, stats.swapped_out_pages) == (0, 1, 1)
    save(tiers, 2, 3, 4)
    assert (tiers.stats().host_pages, tiers.stats().disk_pages) == (2, 2), "without swap pages go on to the cache"
    tiers.close()


def test_without_a_disk_the_longest_unused_pages_are_lost() -> None:
    tiers = make(host=2)
    save(tiers, 0, 1, 2)
    assert [fetch(tiers, number) for number in range(3)] == [None, "host", "host"]


def test_the_persistent_tier_is_found_by_the_next_engine_of_the_same_model(tmp_path: Path) -> None:
    for identity in (b"m", b"other", b"m"):
        tiers = make(tmp_path, cache=4, identity=identity)
        found = fetch(tiers, 1)
        tiers.keep(link_of(1), lambda: rows_of(link_of(1)))
        tiers.close()
    assert found == "cache"


def test_a_damaged_page_is_counted_dropped_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiers = make(tmp_path, cache=4)
    for number in (1, 2):
        tiers.keep(link_of(number), lambda number=number: rows_of(link_of(number)))
    tiers.flush()
    (path,) = tmp_path.glob("cache/*/pages.bin")
    path.write_bytes(bytes(2 * PAGE_BYTES))
    assert [fetch(tiers, 1), fetch(tiers, 2), fetch(tiers, 1)] == [None] * 3
    assert (tiers.stats().checksum_failures, tiers.stats().disk_pages) == (2, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    tiers.keep(link_of(1), lambda: rows_of(link_of(1)))
    assert fetch(tiers, 1) == "cache"
    tiers.close()


def test_equal_digests_of_other_tokens_are_no_hit() -> None:
    tiers = make(host=2)
    save(tiers, 1)
    link = link_of(1)
    assert tiers.fetch(Link(link.digest, (7, 7), None, 1)) is None
    assert fetch(tiers, 1) == "host"


def test_what_is_slower_to_load_than_to_compute_is_left_alone() -> None:
    tiers = make(host=2)
    save(tiers, 1)
    tiers.costs.computed(10**9, 1e-3)
    assert fetch(tiers, 1) is None
    assert (tiers.stats().host_pages, tiers.stats().checksum_failures) == (1, 0)


def test_an_interruption_leaves_tiers_that_work(tmp_path: Path) -> None:
    tiers = make(tmp_path, host=2, swap=2, cache=2)
    save(tiers, 0, 1, 2, 3)
    tiers._host.size_bytes += 1
    tiers._disks[0]._books.claim(b"half done")
    with pytest.raises(PageAccountingError):
        tiers.check()
    tiers.recover()
    tiers.check()
    save(tiers, 0, 1, 2, 3)
    assert [fetch(tiers, number) for number in range(4)] == ["swap", "swap", "host", "host"]
    tiers.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"host_cache_bytes": -1}, "host_cache_bytes: expected a number of bytes, 0 or more, got -1"),
        ({"swap_bytes": 1.5}, "swap_bytes: expected a number of bytes, 0 or more, got 1.5"),
        ({"cache_dir": 3}, "cache_dir: expected a folder, got 3"),
        ({"swap_dir": ""}, "swap_dir: expected a folder, got ''"),
        ({"swap_dir": "a", "cache_dir": Path("a")}, "swap_dir and cache_dir: expected two folders, got a for both"),
    ],
)
def test_options_are_checked(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        TierOptions(**options)


def test_a_host_tier_too_small_for_a_page_is_refused(tmp_path: Path) -> None:
    options = TierOptions(host_cache_bytes=PAGE_BYTES - 1)
    with pytest.raises(OptionError, match="host_cache_bytes: expected at least one page, 96 bytes, got 95"):
        open_tiers(options, identity=b"", page_tokens=1, page_bytes=PAGE_BYTES, about={})


def test_a_folder_is_let_go_when_the_other_one_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OptionError, match="cache_dir"):
        make(tmp_path, swap=1, cache=1)
    (tmp_path / "cache").unlink()
    make(tmp_path, swap=1, cache=1).close()


class AnyUse(RuleBasedStateMachine):
    """Random saves, fetches, restarts and damage; the chain of a page is drawn from few tokens, so that pages recur."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.tiers = make(self.folder, host=2, swap=3, cache=3)
        self.saved: set[bytes] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=6), kept=st.booleans())
    def save(self, tokens: list[int], kept: bool) -> None:
        for link in links_of(tokens):
            (self.tiers.keep if kept else self.tiers.save)(link, lambda link=link: rows_of(link))
            self.saved.add(link.digest)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=6))
    def fetch(self, tokens: list[int]) -> None:
        for link in links_of(tokens):
            fetched = self.tiers.fetch(link)
            if fetched is not None:
                assert link.digest in self.saved
                assert fetched.rows == rows_of(link)

    @rule()
    def restart(self) -> None:
        self.tiers.close()
        self.tiers = make(self.folder, host=2, swap=3, cache=3)

    @rule()
    def recover(self) -> None:
        self.tiers.recover()

    @rule(seed=st.integers(0, 2**20), cut=st.booleans())
    def damage(self, seed: int, cut: bool) -> None:
        self.tiers.flush()
        (path,) = self.folder.glob("cache/*/pages.bin")
        size_bytes = path.stat().st_size
        place = random.Random(seed).randrange(size_bytes) if size_bytes else 0
        if cut or not size_bytes:
            os.truncate(path, place)
            return
        with path.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << seed % 8]))

    @invariant()
    def books_agree(self) -> None:
        self.tiers.check()
        stats = self.tiers.stats()
        assert stats.host_pages <= 2
        assert stats.disk_pages <= 6

    def teardown(self) -> None:
        self.tiers.close()
        shutil.rmtree(self.folder)


# Each example opens files and threads; on a busy machine that is no fault of the test.
AnyUse.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyUse = AnyUse.TestCase
