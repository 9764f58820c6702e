"""The scheduler alone: no model, no tensors; `commit` is given tokens made up here."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentkv.cache.pages import PageAccountingError, PageAllocator
from latentkv.cache.prefix import PrefixIndex
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.scheduler import Limits, Scheduler
from latentkv.engine.state import Request, Sequence, Status, Step
from latentkv.errors import CapacityError, OptionError


def make(num_pages: int = 8, *, prefix: bool = True, page_tokens: int = 4, **limits: int) -> Scheduler:
    index = PrefixIndex(page_tokens=page_tokens, identity=b"test") if prefix else None
    pages = PageAllocator(num_pages, page_tokens=page_tokens, on_evict=index.forget if index else None)
    return Scheduler(pages, index, Limits(**limits))


def sequence(
    prompt: int | list[int], max_tokens: int = 4, *, name: str = "a", stops: set[int] = frozenset()
) -> Sequence:
    token_ids = tuple(range(100, 100 + prompt)) if isinstance(prompt, int) else tuple(prompt)
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(Request(name, token_ids, params), len(token_ids) + max_tokens, frozenset(stops))


def shape(step: Step) -> list[tuple[str, int, int, bool]]:
    return [(chunk.sequence.id, chunk.start, chunk.count, chunk.samples) for chunk in step.chunks]


def advance(scheduler: Scheduler, token: int = 7) -> list[tuple[str, int, int, bool]]:
    """One step, committed and checked; what it was."""
    step = scheduler.schedule()
    scheduler.check()
    scheduler.commit(step, [[token]] * len(step.sampling))
    scheduler.check()
    return shape(step)


def test_a_prompt_is_computed_in_chunks_and_samples_at_its_end() -> None:
    scheduler = make(max_batch_tokens=5)
    scheduler.add(sequence(12, 2))
    assert advance(scheduler) == [("a", 0, 5, False)]
    assert advance(scheduler) == [("a", 5, 5, False)]
    assert advance(scheduler) == [("a", 10, 2, True)]
    assert advance(scheduler) == [("a", 12, 1, True)]
    assert not scheduler.has_work
    assert advance(scheduler) == []


def test_decodes_come_before_prompts_and_prompts_in_order_of_arrival() -> None:
    scheduler = make(16, max_batch_tokens=6)
    scheduler.add(sequence(2, 9, name="a"))
    assert advance(scheduler) == [("a", 0, 2, True)]
    scheduler.add(sequence([1] * 8, name="b"))
    scheduler.add(sequence([2] * 2, name="c"))
    assert advance(scheduler) == [("a", 2, 1, True), ("b", 0, 5, False)]
    assert advance(scheduler) == [("a", 3, 1, True), ("b", 5, 3, True), ("c", 0, 2, True)]


def test_no_more_sequences_than_allowed_run_at_once() -> None:
    scheduler = make(16, max_batch_sequences=2)
    for name in "abc":
        scheduler.add(sequence(2, 2, name=name))
    assert [chunk[0] for chunk in advance(scheduler)] == ["a", "b"]
    assert [chunk[0] for chunk in advance(scheduler)] == ["a", "b"]
    assert [chunk[0] for chunk in advance(scheduler)] == ["c"]


def test_full_pages_are_reused_and_the_last_token_is_computed() -> None:
    scheduler = make()
    scheduler.add(sequence(8, 1, name="a"))
    advance(scheduler)
    scheduler.add(sequence(8, 1, name="b"))
    assert advance(scheduler) == [("b", 4, 4, True)]
    assert scheduler.counts.reused_tokens == 4


def test_output_is_reused_too() -> None:
    scheduler = make()
    scheduler.add(sequence([1, 2, 3], 6, name="a"))
    while scheduler.has_work:
        advance(scheduler, token=7)
    scheduler.add(sequence([1, 2, 3, 7, 7, 7, 7, 7, 9], 1, name="b"))
    assert advance(scheduler) == [("b", 8, 1, True)]


def test_without_an_index_nothing_is_reused_or_kept() -> None:
    scheduler = make(prefix=False)
    for name in "ab":
        scheduler.add(sequence(8, 1, name=name))
        assert advance(scheduler) == [(name, 0, 8, True)]
    assert scheduler.pages.free_pages == 8


def test_the_youngest_gives_way_keeps_its_tokens_and_comes_back_first() -> None:
    scheduler = make(4, prefix=False)
    scheduler.add(sequence([1] * 4, 9, name="old"))
    scheduler.add(sequence([2] * 4, 9, name="young"))
    advance(scheduler)
    scheduler.add(sequence([3] * 4, 1, name="later"))
    steps = [advance(scheduler) for _ in range(5)]
    assert [[chunk[0] for chunk in step] for step in steps] == [["old", "young"]] * 4 + [["old"]]
    assert scheduler.counts.preemptions == 1
    assert [waiting.id for waiting in scheduler.waiting] == ["young", "later"]
    assert scheduler.waiting[0].output_tokens == 5
    steps = []
    while scheduler.has_work:
        steps.append(advance(scheduler))
    assert steps[3:5] == [[("young", 0, 9, True)], [("young", 9, 1, True)]]
    assert steps[-1] == [("later", 0, 4, True)]


def test_a_preempted_sequence_finds_its_own_pages_again() -> None:
    scheduler = make(5)
    scheduler.add(sequence([1] * 4, 12, name="old"))
    scheduler.add(sequence([2] * 8, 9, name="young"))
    starts = []
    while scheduler.has_work:
        starts += [chunk[1] for chunk in advance(scheduler) if chunk[0] == "young"]
    assert scheduler.counts.preemptions == 1
    assert starts == [0, 8, 9, 10, 11, 4, 13, 14, 15]
    assert scheduler.counts.reused_tokens == 0


def test_a_stop_token_ends_a_sequence_and_frees_its_pages() -> None:
    scheduler = make()
    stopping = sequence(3, 9, stops={7})
    scheduler.add(stopping)
    advance(scheduler, token=7)
    assert (stopping.status, stopping.finish_reason) == (Status.FINISHED, "stop")
    assert scheduler.pages.held_pages == 0


def test_what_could_never_run_is_refused_and_what_outgrows_the_pool_ends_there() -> None:
    scheduler = make(2)
    with pytest.raises(CapacityError, match=r"prompt: expected at most 8 tokens .* more cache_tokens\.$"):
        scheduler.add(sequence(9, 1))
    long = sequence(4, 50, name="ends at the pool")
    scheduler.add(long)
    while scheduler.has_work:
        advance(scheduler)
    assert (long.finish_reason, long.output_tokens) == ("length", 5)
    assert scheduler.counts.preemptions == 0


@pytest.mark.parametrize("name", ["max_batch_tokens", "max_batch_sequences"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: expected 1 or more, got 0"):
        Limits(**{name: 0})


def test_abort_between_schedule_and_commit() -> None:
    scheduler = make()
    gone, stays = sequence([1] * 5, name="gone"), sequence([2] * 5, name="stays")
    scheduler.add(gone)
    scheduler.add(stays)
    step = scheduler.schedule()
    scheduler.finish(gone, "abort")
    scheduler.finish(gone, "stop")
    scheduler.commit(step, [[7], [8]])
    scheduler.check()
    assert (gone.finish_reason, gone.output_tokens, gone.pages) == ("abort", 0, [])
    assert stays.output_token_ids == [8]


def test_check_notices_a_page_without_owner() -> None:
    scheduler = make()
    scheduler.add(sequence(5))
    advance(scheduler)
    scheduler.running[0].pages.pop()
    with pytest.raises(PageAccountingError, match="1 references, 0 sequences"):
        scheduler.check()


class AnyTraffic(RuleBasedStateMachine):
    """Random requests, steps and aborts in a small pool: always progress, never a wrong count, everything ends."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(6, page_tokens=2, max_batch_tokens=5, max_batch_sequences=3)
        self.added: list[Sequence] = []

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9), max_tokens=st.integers(1, 8))
    def add(self, prompt: list[int], max_tokens: int) -> None:
        new = sequence(prompt, max_tokens, name=str(len(self.added)), stops={2})
        try:
            self.scheduler.add(new)
            self.added.append(new)
        except CapacityError:
            assert len(prompt) > 12

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        step = self.scheduler.schedule()
        assert step.chunks, "work, but nothing scheduled"
        assert step.num_tokens <= 5
        assert len(self.scheduler.running) <= 3
        for chunk in step.chunks:
            assert chunk.start == chunk.sequence.computed
            assert len(chunk.sequence.pages) * 2 >= chunk.start + chunk.count
            assert chunk.samples == (chunk.start + chunk.count == len(chunk.sequence.token_ids))
        size = len(step.sampling)
        tokens = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
        self.scheduler.commit(step, [[token] for token in tokens])

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.finish(data.draw(st.sampled_from(self.added)), "abort")

    @invariant()
    def books_agree(self) -> None:
        self.scheduler.check()

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            advance(self.scheduler, token=1)
        assert not self.scheduler.has_work
        assert self.scheduler.pages.held_pages == 0
        assert all(one.status is Status.FINISHED for one in self.added)


AnyTraffic.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase


@pytest.mark.parametrize(
    "module",
    ["cache.pages", "cache.prefix", "engine.state", "engine.scheduler", "engine.sampling_params", "engine.text"],
)
def test_planning_needs_no_torch(module: str) -> None:
    code = f"import sys, latentkv.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
