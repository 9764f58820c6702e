"""Turns: warm-ups do not count unless they are long, and a slow peer is not asked again."""

from __future__ import annotations

from collections.abc import Callable

from latentkv.bench.turns import LONG_SECONDS, Contender, take_turns


def scripted(*seconds: float) -> Callable[[], float]:
    remaining = iter(seconds)
    return lambda: next(remaining)


def test_the_first_run_warms_up_and_the_median_of_the_others_counts() -> None:
    one = Contender("one", scripted(4.0, 1.0, 3.0, 2.0))
    reported: list[tuple[int, str]] = []
    take_turns([one], repeats=3, report=lambda done, name: reported.append((done, name)))
    assert one.seconds == [1.0, 3.0, 2.0]
    assert one.median == 2.0
    assert reported == [(0, "one"), (1, "one"), (2, "one"), (3, "one")]


def test_a_long_first_run_counts() -> None:
    one = Contender("one", scripted(LONG_SECONDS, 6.0))
    take_turns([one], repeats=2, report=lambda *_: None)
    assert one.seconds == [LONG_SECONDS, 6.0]


def test_everybody_is_run_once_in_each_turn() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0

    take_turns([Contender("a", run("a")), Contender("b", run("b"))], repeats=2, report=lambda *_: None)
    assert order == ["a", "b"] * 3


def test_only_the_fastest_peers_are_repeated_and_ours_always() -> None:
    ours = Contender("ours", scripted(9.0, 4.0, 4.0))
    slow = Contender("slow", scripted(2.1), peer=True)
    fast = Contender("fast", scripted(1.0, 1.0, 1.0), peer=True)
    take_turns([ours, slow, fast], repeats=2, report=lambda *_: None)
    assert (ours.seconds, slow.seconds, fast.seconds) == ([9.0, 4.0], [2.1], [1.0, 1.0])
