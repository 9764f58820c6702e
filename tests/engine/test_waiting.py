"""Who is next: urgency, ageing, shares, prefixes that are being computed; and that no token waits for two steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentkv.cache.pages import PageAllocator
from latentkv.cache.prefix import PrefixIndex
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.scheduler import Limits, Scheduler
from latentkv.engine.speculative import Speculation
from latentkv.engine.state import Owner, Request, Sequence, Status
from latentkv.engine.waiting import AGEING_STEPS


def make(
    num_pages: int = 64, *, prefix: bool = True, speculation: Speculation | None = None, **limits: int
) -> Scheduler:
    index = PrefixIndex(page_tokens=4, identity=b"test") if prefix else None
    pages = PageAllocator(num_pages, page_tokens=4, on_evict=index.forget if index else None)
    return Scheduler(pages, index, Limits(**limits), speculation=speculation)


def sequence(
    name: str, prompt: int | list[int] = 4, tokens: int = 3, *, priority: int = 0, owner: Owner = ()
) -> Sequence:
    ids = tuple(random.Random(name).choices(range(1000), k=prompt)) if isinstance(prompt, int) else tuple(prompt)
    request = Request(name, ids, SamplingParams(max_tokens=tokens), priority, owner)
    return Sequence(request, len(ids) + tokens, frozenset())


def advance(scheduler: Scheduler, token: int = 7) -> list[str]:
    """One step; who was computed."""
    step = scheduler.schedule()
    scheduler.check()
    scheduler.commit(step, [[token]] * len(step.sampling))
    scheduler.check()
    return [chunk.sequence.id for chunk in step.chunks]


def starts(scheduler: Scheduler, *, steps: int = 10_000) -> list[str]:
    """Run to the end; the order in which sequences started."""
    order: list[str] = []
    while scheduler.has_work and steps:
        steps -= 1
        order += [name for name in advance(scheduler) if name not in order]
    return order


def test_the_urgent_start_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make(max_batch_sequences=1)
    for name, priority in (("b1", 0), ("c", 5), ("b2", 0), ("a", -1), ("b3", 0)):
        scheduler.add(sequence(name, priority=priority))
    assert starts(scheduler) == ["a", "b1", "b2", "b3", "c"]


def test_waiting_makes_urgent() -> None:
    scheduler = make(max_batch_sequences=1)
    scheduler.add(sequence("patient", priority=1))
    order: list[str] = []
    for number in range(3 * AGEING_STEPS):
        if number % 3 == 0:
            scheduler.add(sequence(f"urgent-{number}", priority=0))
        order += [name for name in advance(scheduler) if name not in order]
        if "patient" in order:
            break
    # Once it counts as equal it is the oldest.
    assert AGEING_STEPS / 3 <= len(order) <= AGEING_STEPS / 3 + 3


def test_owners_share_by_tokens_and_a_late_one_does_not_wait_for_a_queue() -> None:
    scheduler = make(max_batch_sequences=1)
    for number in range(6):
        scheduler.add(sequence(f"big-{number}", 8, owner=("big",)))
    advance(scheduler)
    for number in range(3):
        scheduler.add(sequence(f"small-{number}", 8, owner=("small",)))
    order = starts(scheduler)
    assert order[:6] == ["big-0", "small-0", "big-1", "small-1", "big-2", "small-2"]


def test_many_users_of_one_key_take_from_that_key_alone() -> None:
    scheduler = make(max_batch_sequences=1)
    scheduler.add(sequence("first", 8, owner=("one", "a")))
    for user in "abc":
        for number in range(2):
            scheduler.add(sequence(f"one-{user}{number}", 8, owner=("one", user)))
    for number in range(3):
        scheduler.add(sequence(f"two-{number}", 8, owner=("two", "a")))
    order = starts(scheduler)
    assert [name.split("-")[0] for name in order[:6]] == ["first", "two", "one", "two", "one", "two"]
    assert [name for name in order if name.startswith("one")][:2] == ["one-b0", "one-c0"]


def test_nobody_saves_up_while_away() -> None:
    scheduler = make(max_batch_sequences=1)
    for number in range(8):
        scheduler.add(sequence(f"here-{number}", 8, owner=("here",)))
    while len(scheduler.waiting) > 4:
        advance(scheduler)
    for number in range(4):
        scheduler.add(sequence(f"back-{number}", 8, owner=("back",)))
    order = starts(scheduler)
    assert order[-1] in ("here-7", "back-3")
    assert {name.split("-")[0] for name in order[1:3]} == {"here", "back"}


def test_an_urgent_one_takes_the_place_of_the_least_urgent() -> None:
    scheduler = make(max_batch_sequences=2)
    scheduler.add(sequence("old", tokens=9, priority=1))
    scheduler.add(sequence("young", tokens=9, priority=2))
    advance(scheduler)
    scheduler.add(sequence("equal", priority=2))
    assert advance(scheduler) == ["old", "young"]
    scheduler.add(sequence("urgent", priority=0))
    assert advance(scheduler) == ["old", "urgent"]
    assert scheduler.counts.preemptions == 1
    assert [one.id for one in scheduler.waiting] == ["young", "equal"]
    assert starts(scheduler)[-1] == "equal"


def test_nobody_is_sent_away_for_what_would_not_fit_anyway() -> None:
    scheduler = make(8, prefix=False)
    scheduler.add(sequence("small", 4, 9, priority=2))
    scheduler.add(sequence("large", 12, 9, priority=0))
    advance(scheduler)
    scheduler.add(sequence("urgent", 16, priority=0))
    assert sorted(advance(scheduler)) == ["large", "small"]
    assert scheduler.counts.preemptions == 0


def test_when_pages_run_out_the_least_urgent_goes() -> None:
    scheduler = make(5, prefix=False)
    scheduler.add(sequence("lazy", 4, 12, priority=3))
    scheduler.add(sequence("keen", 4, 12, priority=0))
    names: list[list[str]] = []
    while scheduler.has_work:
        names.append(advance(scheduler))
    assert scheduler.counts.preemptions == 1
    alone = [step for step in names if step == ["keen"]]
    assert alone
    assert names[-1] == ["lazy"]


def test_a_prefix_that_is_being_computed_is_waited_for() -> None:
    scheduler = make(max_batch_tokens=8)
    shared = list(range(500, 520))
    scheduler.add(sequence("first", [*shared, 1]))
    scheduler.add(sequence("second", [*shared, 2]))
    scheduler.add(sequence("other", 3))
    assert advance(scheduler) == ["first"]
    assert advance(scheduler) == ["first"]
    # The first one's prompt ends here, and there is room: for the other, not for computing the prefix once more.
    assert advance(scheduler) == ["first", "other"]
    assert advance(scheduler) == ["first", "other", "second"]
    assert scheduler.counts.reused_tokens == 20


def test_within_one_step_a_prefix_is_computed_once_too() -> None:
    scheduler = make(max_batch_tokens=64)
    shared = list(range(500, 508))
    for number in range(3):
        scheduler.add(sequence(f"{number}", [*shared, number]))
    assert advance(scheduler) == ["0"]
    assert advance(scheduler) == ["0", "1", "2"]
    assert scheduler.counts.reused_tokens == 16


def test_less_than_a_page_in_common_is_not_waited_for() -> None:
    scheduler = make(max_batch_tokens=64)
    for number in range(3):
        scheduler.add(sequence(f"{number}", [1, 2, 3, number, 5, 6]))
    assert advance(scheduler) == ["0", "1", "2"]


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    max_batch_tokens=st.integers(1, 12),
    guesses=st.sampled_from([None, 1, 4]),
    pages=st.sampled_from([8, 200]),
)
def test_every_generating_sequence_gets_a_token_in_every_step(
    data: st.DataObject, max_batch_tokens: int, guesses: int | None, pages: int
) -> None:
    """The bound on the time between two tokens: one step of at most `max_batch_tokens`, unless pages run out."""
    speculation = Speculation(tokens=guesses) if guesses else None
    scheduler = make(pages, max_batch_tokens=max_batch_tokens, max_batch_sequences=5, speculation=speculation)
    names = iter(range(10_000))
    for _ in range(30):
        for _ in range(data.draw(st.integers(0, 2))):
            one = sequence(
                str(next(names)),
                data.draw(st.integers(1, 20)),
                data.draw(st.integers(1, 8)),
                priority=data.draw(st.integers(0, 2)),
                owner=data.draw(st.sampled_from((("k", "x"), ("k", "y"), ("l", "x")))),
            )
            scheduler.add(one)
        generating = [one for one in scheduler.running if one.pending == 1 and one.output_tokens]
        step = scheduler.schedule()
        scheduler.check()
        assert step.num_tokens <= max_batch_tokens
        assert bool(step.chunks) == scheduler.has_work
        computed = {chunk.sequence for chunk in step.sampling}
        for one in generating:
            assert one in computed or one.status is Status.WAITING, "only giving way delays a token"
        drafts = [chunk.drafts for chunk in step.sampling]
        accepted = [data.draw(st.integers(0, len(one))) for one in drafts]
        scheduler.commit(step, [[*one[:count], 7] for one, count in zip(drafts, accepted, strict=True)])
        scheduler.check()
    while scheduler.has_work:
        advance(scheduler)
    assert scheduler.pages.held_pages == 0


@pytest.mark.parametrize("guesses", [None, 4])
def test_a_long_prompt_does_not_hold_up_those_who_generate(guesses: int | None) -> None:
    scheduler = make(1000, max_batch_tokens=16, speculation=Speculation(tokens=guesses) if guesses else None)
    for number in range(4):
        scheduler.add(sequence(f"g{number}", 3, 60))
    advance(scheduler)
    scheduler.add(sequence("long", 160, 2))
    for _ in range(14):
        assert [name for name in advance(scheduler) if name != "long"] == ["g0", "g1", "g2", "g3"]
    assert any(one.id == "long" and one.output_tokens for one in scheduler.running), "160 tokens, 12 in each step"
