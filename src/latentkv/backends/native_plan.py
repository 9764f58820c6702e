"""How the native kernel's work is divided: which rows against which range of the context, and what is merged.

Made from lengths alone, once per step. Knows no tensors of the model; the records are those of csrc/params.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentkv.cache.batch import integers

# Rows (token and head) that the kernel computes together: csrc/kernels.
TILE_ROWS = 64
# Contexts are cut at multiples of this: whole chunks of the kernel, which are of 48 tokens, on matrix tiles of 64.
CUT_TOKENS = 192
# A range of context this short is not worth the merge,
LEAST_TOKENS = 3 * CUT_TOKENS
# unless it keeps a thread busy that would have nothing to do: then this short, and cut at multiples of
LEAST_IDLE_TOKENS = 64
IDLE_CUT_TOKENS = 16
# More items than threads: the last to finish is then late by little.
ITEMS_PER_THREAD = 4
# What one context token costs besides its rows, in rows: reading and widening it.
TOKEN_ROWS = 4
# With `deterministic`, the pieces of a context depend on the sequence's own lengths alone.
FIXED_TOKENS = 5 * CUT_TOKENS
FIXED_PIECES = 16


@dataclass(frozen=True)
class Work:
    """Records for one kernel call.

    sequences: [B, 3] int64: first row of the query, query_len, context_len
    items:     [items, 8] int64: sequence, group, first row, rows, context begin, end, slot to load, slot to store
    merges:    [merges, 6] int64: sequence, group, first row, rows, first slot, slots
    slots:     unfinished results kept at once
    threads:   threads the items were made for
    """

    sequences: Tensor
    items: Tensor
    merges: Tensor
    slots: int
    threads: int

    @property
    def records(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """As the kernel takes them."""
        return self.sequences, self.items, self.merges, self.slots


@dataclass(frozen=True, slots=True)
class _Tile:
    sequence: int
    group: int
    first_row: int
    rows: int
    seen: int
    context: int

    @property
    def cost(self) -> int:
        return self.seen * (self.rows + TOKEN_ROWS)


def divide(
    lengths: Sequence[tuple[int, int]],
    *,
    chosen: Iterable[int],
    heads: int,
    groups: int,
    threads: int,
    deterministic: bool = False,
) -> Work:
    """Work over the `chosen` sequences of a batch with these (query_len, context_len), for `threads` threads.

    Rows of one sequence and KV group are numbered head by head: row = head in group * query_len + token. The query
    holds the chosen sequences' tokens only.
    """
    chosen = tuple(chosen)
    sequences, start = [(0, 0, 0)] * len(lengths), 0
    for index in chosen:
        sequences[index] = (start, *lengths[index])
        start += lengths[index][0]
    tiles = [
        tile
        for index in chosen
        for group in range(groups)
        for tile in _tiles(index, group, heads // groups, *lengths[index])
    ]
    share = max(1, sum(tile.cost for tile in tiles) // (threads * ITEMS_PER_THREAD))
    items: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    slots = 0
    tiles_of = _count_by_sequence(tiles)
    for tile in tiles:
        pieces = _fixed_pieces(tile, tiles_of[tile.sequence]) if deterministic else _pieces(tile, share, threads)
        where = (tile.sequence, tile.group, tile.first_row, tile.rows)
        if len(pieces) == 1:
            items.append((*where, 0, tile.context, -1, -1))
            continue
        merges.append((*where, slots, len(pieces)))
        for begin, end in pieces:
            items.append((*where, begin, end, -1, slots))
            slots += 1
    items.sort(key=_longest_first)
    return Work(_records(sequences, 3), _records(items, 8), _records(merges, 6), slots, threads)


def _longest_first(item: tuple[int, ...]) -> int:
    """What is left for the end is then short."""
    return -(item[5] - item[4]) * (item[3] + TOKEN_ROWS)


def _tiles(sequence: int, group: int, heads: int, query_len: int, context_len: int) -> Iterable[_Tile]:
    rows = heads * query_len
    if rows == 0:
        return
    size = -(-rows // -(-rows // TILE_ROWS))
    size = -(-size // 16) * 16
    for first in range(0, rows, size):
        last = min(first + size, rows) - 1
        token = last % query_len if first // query_len == last // query_len else query_len - 1
        seen = max(0, context_len - (query_len - 1 - token))
        yield _Tile(sequence, group, first, last - first + 1, seen, context_len)


def _pieces(tile: _Tile, share: int, threads: int) -> list[tuple[int, int]]:
    if threads == 1:
        return _cut(tile, 1, CUT_TOKENS)
    usual = max(1, min(tile.seen // LEAST_TOKENS, -(-tile.cost // share)))
    for_all = min(tile.seen // LEAST_IDLE_TOKENS, -(-tile.cost // (share * ITEMS_PER_THREAD)))
    return _cut(tile, usual, CUT_TOKENS) if usual >= for_all else _cut(tile, for_all, IDLE_CUT_TOKENS)


def _fixed_pieces(tile: _Tile, tiles: int) -> list[tuple[int, int]]:
    return _cut(tile, max(1, min(tile.seen // FIXED_TOKENS, FIXED_PIECES // tiles)), CUT_TOKENS)


def _cut(tile: _Tile, count: int, step: int) -> list[tuple[int, int]]:
    """`count` ranges of whole steps; the last also holds what only a call without causal mask sees."""
    parts = -(-tile.seen // step)
    cuts = [parts * i // count * step for i in range(count)]
    return list(zip(cuts, [*cuts[1:], tile.context], strict=True))


def _count_by_sequence(tiles: Iterable[_Tile]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for tile in tiles:
        counts[tile.sequence] = counts.get(tile.sequence, 0) + 1
    return counts


def _records(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
    return integers(value for row in rows for value in row).view(-1, width)
