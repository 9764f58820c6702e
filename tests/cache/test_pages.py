"""The page allocator's promises one by one; tests/cache/test_page_sharing.py tries them at random."""

from __future__ import annotations

import pytest

from latentkv.cache.pages import PageAccountingError, PageAllocator, PageCopy
from latentkv.errors import OptionError, OutOfPagesError


def states(pages: PageAllocator) -> tuple[int, int, int]:
    pages.check()
    return pages.free_pages, pages.held_pages, pages.cached_pages


def test_allocation_is_all_or_nothing() -> None:
    pages = PageAllocator(3)
    held = pages.allocate(2)
    with pytest.raises(OutOfPagesError, match="at most 1, got 2"):
        pages.allocate(2)
    assert states(pages) == (1, 2, 0)
    assert sorted(held + pages.allocate(1)) == [0, 1, 2]
    assert pages.allocate(0) == []


def test_a_shared_page_is_free_after_its_last_release() -> None:
    pages = PageAllocator(2)
    held = pages.allocate(1)
    pages.share(held)
    pages.release(held)
    assert states(pages) == (1, 1, 0)
    pages.release(held)
    assert states(pages) == (2, 0, 0)


def test_kept_pages_stay_cached_and_can_be_shared_again() -> None:
    pages = PageAllocator(2)
    held = pages.allocate(1)
    pages.keep(held)
    pages.release(held)
    assert states(pages) == (1, 0, 1)
    pages.share(held)
    assert states(pages) == (1, 1, 0)
    assert pages.references(held[0]) == 1


def test_eviction_takes_the_longest_unused_and_the_end_of_a_prefix_first() -> None:
    evicted: list[int] = []
    pages = PageAllocator(4, on_evict=evicted.append)
    first, second = pages.allocate(2), pages.allocate(2)
    pages.keep(first + second)
    pages.release(second)
    pages.release(first)
    pages.allocate(3)
    assert evicted == [second[1], second[0], first[1]]
    assert pages.kept_pages == {first[0]}
    assert states(pages) == (0, 3, 1)


def test_free_pages_are_used_before_cached_ones() -> None:
    evicted: list[int] = []
    pages = PageAllocator(3, on_evict=evicted.append)
    held = pages.allocate(1)
    pages.keep(held)
    pages.release(held)
    pages.allocate(2)
    assert evicted == []


def test_writing_to_a_page_of_ones_own_needs_no_copy() -> None:
    pages = PageAllocator(2)
    (page,) = pages.allocate(1)
    assert pages.make_writable(page) is None


@pytest.mark.parametrize("indexed", [False, True])
def test_writing_to_a_page_others_rely_on_copies_it(indexed: bool) -> None:
    pages = PageAllocator(2)
    (page,) = pages.allocate(1)
    if indexed:
        pages.keep([page])
    else:
        pages.share([page])
    assert pages.make_writable(page) == PageCopy(source=page, target=1 - page)
    assert pages.references(1 - page) == 1
    assert states(pages) == ((0, 1, 1) if indexed else (0, 2, 0))


def test_copy_on_write_without_a_page_changes_nothing() -> None:
    pages = PageAllocator(1)
    (page,) = pages.allocate(1)
    pages.share([page])
    with pytest.raises(OutOfPagesError):
        pages.make_writable(page)
    assert pages.references(page) == 2


def test_misuse_is_refused_and_changes_nothing() -> None:
    pages = PageAllocator(2)
    (page,) = pages.allocate(1)
    misuses = [
        lambda: pages.release([page, page]),
        lambda: pages.release([1 - page]),
        lambda: pages.release([2]),
        lambda: pages.release([-1]),
        lambda: pages.share([1 - page]),
        lambda: pages.share([page, 7]),
        lambda: pages.keep([1 - page]),
        lambda: pages.make_writable(1 - page),
        lambda: pages.allocate(-1),
    ]
    for misuse in misuses:
        with pytest.raises(PageAccountingError):
            misuse()
        assert states(pages) == (1, 1, 0)
        assert pages.references(page) == 1
    pages.release([page])
    with pytest.raises(PageAccountingError, match="has 0 holders"):
        pages.release([page])


@pytest.mark.parametrize("num_pages", [0, -3])
def test_an_empty_pool_is_refused(num_pages: int) -> None:
    with pytest.raises(OptionError, match="num_pages: expected 1 or more"):
        PageAllocator(num_pages)


@pytest.mark.parametrize("page_tokens", [0, 3, 512])
def test_odd_page_sizes_are_refused(page_tokens: int) -> None:
    with pytest.raises(OptionError, match="power of two from 1 to 256"):
        PageAllocator(1, page_tokens=page_tokens)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda pages: pages._free.pop(), "free \\+ held \\+ cached"),
        (lambda pages: pages._free.append(pages._free[0]), "free twice"),
        (lambda pages: pages._cached.update({pages._free[0]: None}), "two states"),
        (lambda pages: pages._kept.add(pages._free[0]), "free page that is kept"),
        (lambda pages: pages._references.__setitem__(pages._free[0], -1), "negative"),
        (lambda pages: pages._references.__setitem__(pages._free[0], 1), "two states"),
    ],
)
def test_check_notices_damage_and_tells_all_numbers(damage: object, complaint: str) -> None:
    pages = PageAllocator(4)
    pages.allocate(1)
    damage(pages)
    with pytest.raises(PageAccountingError, match=complaint) as caught:
        pages.check()
    assert "4 pages" in str(caught.value)
