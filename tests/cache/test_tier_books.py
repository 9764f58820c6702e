"""Slots and host memory: no page in two places, none lost, the longest unused goes first."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tier_parts import PAGE_BYTES, page_of

from latentkv.cache.pages import PageAccountingError
from latentkv.cache.tiers.books import Claim, SlotBooks
from latentkv.cache.tiers.costs import ASSUMED, Costs
from latentkv.cache.tiers.host import HostTier


def test_slots_are_used_from_the_lowest_and_the_longest_unused_page_gives_way() -> None:
    books = SlotBooks(2)
    assert books.claim(b"a") == Claim(0, None)
    assert books.claim(b"b") == Claim(1, None)
    books.touch(b"a")
    assert books.claim(b"c") == Claim(1, b"b")
    books.drop(b"a")
    assert books.claim(b"d") == Claim(0, None)
    assert list(books) == [b"c", b"d"]
    assert SlotBooks(0).claim(b"a") is None


def test_a_page_gets_no_second_slot() -> None:
    books = SlotBooks(2)
    books.claim(b"a")
    with pytest.raises(PageAccountingError, match="held already"):
        books.claim(b"a")


def test_restored_books_go_on_where_gaps_are() -> None:
    books = SlotBooks(4)
    books.restore([(b"a", 2), (b"b", 0)])
    books.check([b"a", b"b"])
    assert [books.claim(name) for name in (b"c", b"d", b"e")] == [Claim(1, None), Claim(3, None), Claim(2, b"a")]


def test_check_notices_what_does_not_add_up() -> None:
    books = SlotBooks(4)
    books.claim(b"a")
    with pytest.raises(PageAccountingError, match="0 pages known, 1 in slots"):
        books.check([])
    books._slots[b"b"] = 0
    with pytest.raises(PageAccountingError):
        books.check([b"a", b"b"])


class AnyUse(RuleBasedStateMachine):
    """Books against a plain ordered dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.books = SlotBooks(5)
        self.truth: OrderedDict[bytes, int] = OrderedDict()

    @rule(digest=st.binary(min_size=1, max_size=1))
    def claim(self, digest: bytes) -> None:
        if digest in self.truth:
            return
        claim = self.books.claim(digest)
        if self.books.num_slots == 0:
            assert claim is None
            return
        assert claim is not None
        if claim.displaced is not None:
            assert claim.displaced == next(iter(self.truth))
            del self.truth[claim.displaced]
        assert claim.slot not in self.truth.values()
        self.truth[digest] = claim.slot

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), dropped=st.booleans())
    def touch_or_drop(self, data: st.DataObject, dropped: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.truth)))
        if dropped:
            self.books.drop(digest)
            del self.truth[digest]
        else:
            self.books.touch(digest)
            self.truth.move_to_end(digest)

    @precondition(lambda self: len(self.truth) < 5)
    @rule(chance=st.integers(0, 9))
    def shrink(self, chance: int) -> None:
        if chance == 0:
            self.books.shrink()

    @rule()
    def restore(self) -> None:
        fresh = SlotBooks(self.books.num_slots)
        held = [(digest, slot) for digest, slot in self.truth.items() if slot < fresh.num_slots]
        fresh.restore(held)
        self.books, self.truth = fresh, OrderedDict(held)

    @invariant()
    def agree(self) -> None:
        self.books.check(self.truth)
        assert list(self.books) == list(self.truth)
        assert [self.books.slot(digest) for digest in self.truth] == list(self.truth.values())


AnyUse.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyUse = AnyUse.TestCase


def test_the_host_tier_hands_on_what_does_not_fit_and_what_returns_leaves_it() -> None:
    host = HostTier(2 * PAGE_BYTES + 1)
    a, b, c = (page_of(number) for number in (1, 2, 3))
    assert host.put(a) == host.put(b) == []
    host.touch(a.record.digest)
    assert host.put(c) == [b]
    assert host.read(a.record.digest) == a.rows
    assert host.read(a.record.digest) is None
    assert (len(host), host.size_bytes) == (1, PAGE_BYTES)
    host.check()
    host.size_bytes += 1
    with pytest.raises(PageAccountingError, match="97 bytes counted, 96 held"):
        host.check()


def test_loading_is_chosen_where_it_is_quicker() -> None:
    costs = Costs()
    assert costs.prefers_loading("swap", 10**12, 1), "nothing was computed yet: nothing to compare with"
    costs.computed(1000, 10.0)
    limit = int(ASSUMED["swap"] * 64 / 100)
    assert costs.prefers_loading("swap", limit, 64)
    assert not costs.prefers_loading("swap", limit * 2, 64)


def test_one_slow_moment_does_not_close_a_tier_for_good() -> None:
    costs = Costs()
    costs.computed(1000, 1.0)
    costs.bytes_per_second["host"] = 1.0
    refusals = 0
    while not costs.prefers_loading("host", 2**20, 64):
        refusals += 1
        assert refusals < 20
    assert refusals > 0
