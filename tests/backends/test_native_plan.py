"""The division of attention's work: everything once, and no thread with more than its share."""

from __future__ import annotations

import heapq

import pytest

from latentkv.backends.native_plan import CUT_TOKENS, TOKEN_ROWS, Work, divide

Lengths = list[tuple[int, int]]
MIXED: Lengths = [(1, 100 + 37 * i % 600) for i in range(16)]
PREFILL: Lengths = [(300, 900), (1, 5), (0, 70), (1, 0)]
BATCHES: list[Lengths] = [
    [(1, 4096)],
    [(1, 32768)],
    [(1, 300)] * 3,
    [(1, 1000)] * 5,
    [(1, 20000), (1, 100), (1, 50)],
    [(4, 4096), (1, 4096)],
    MIXED,
]


def work_of(lengths: Lengths, *, heads: int, threads: int, deterministic: bool = False) -> Work:
    chosen = range(len(lengths))
    return divide(lengths, chosen=chosen, heads=heads, groups=1, threads=threads, deterministic=deterministic)


def longest_thread(work: Work) -> float:
    """Whoever is free takes the next item: what the last one to finish has done, in shares of a thread."""
    costs = [(end - begin) * (rows + TOKEN_ROWS) for _, _, _, rows, begin, end, _, _ in work.items.tolist()]
    loads = [0] * work.threads
    for cost in costs:
        heapq.heapreplace(loads, loads[0] + cost)
    return float(max(loads) * work.threads / sum(costs))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3, 32])
@pytest.mark.parametrize("heads", [1, 16, 100])
@pytest.mark.parametrize("lengths", [*BATCHES, PREFILL])
def test_every_row_meets_its_whole_context_once(
    lengths: Lengths, heads: int, threads: int, deterministic: bool
) -> None:
    work = work_of(lengths, heads=heads, threads=threads, deterministic=deterministic)
    ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    slots: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for sequence, _, first, rows, begin, end, load, store in work.items.tolist():
        assert load == -1
        assert end > begin or lengths[sequence][1] == 0
        for row in range(first, first + rows):
            ranges.setdefault((sequence, row), []).append((begin, end))
            slots.setdefault((sequence, row), []).append((begin, store))
    for sequence, (query_len, context_len) in enumerate(lengths):
        for row in range(heads * query_len):
            pieces = sorted(ranges[sequence, row])
            assert [begin for begin, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
            assert pieces[-1][1] == context_len
            assert all(begin % CUT_TOKENS == 0 for begin, _ in pieces)
    merged = {
        (sequence, row): list(range(slot, slot + count))
        for sequence, _, first, rows, slot, count in work.merges.tolist()
        for row in range(first, first + rows)
    }
    for place, stored in slots.items():
        in_order = [slot for _, slot in sorted(stored)]
        assert in_order == merged.get(place, [-1])
    assert work.slots == sum(count for *_, count in work.merges.tolist())


@pytest.mark.parametrize("heads", [1, 16, 64, 128])
@pytest.mark.parametrize("lengths", BATCHES)
def test_two_threads_end_together(lengths: Lengths, heads: int) -> None:
    assert longest_thread(work_of(lengths, heads=heads, threads=2)) < 1.08


def test_long_contexts_keep_many_threads_busy() -> None:
    assert longest_thread(work_of([(1, 32768)], heads=16, threads=32)) < 1.15


def test_whole_contexts_are_not_cut() -> None:
    assert work_of([(1, 4096)] * 8, heads=16, threads=2).slots == 0
    assert work_of([(1, 4096)], heads=16, threads=1).slots == 0
    assert work_of(MIXED, heads=16, threads=2).slots == 0
