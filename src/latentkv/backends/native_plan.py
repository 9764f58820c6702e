"""How the native kernel's work is divided: which rows against which range of the context, and what is merged.

Made from lengths alone, once per step. Knows no tensors of the model; the records are those of csrc/params.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace

from torch import Tensor

from latentkv.cache.batch import integers

# Rows (token and head) that the kernel computes together: csrc/kernels.
TILE_ROWS = 64
# Contexts are cut at multiples of this: whole chunks of the kernel on vectors, whole tiles of tokens on matrix tiles.
CUT_TOKENS = 48
# A range of context shorter than this is not worth the merge.
LEAST_TOKENS = 64
# Where the last pieces would be this long, threads get three quarters of their shares first and the rest in two such
# pieces: cores are seldom equally fast.
LATE_TOKENS = 4 * CUT_TOKENS
# What one context token costs besides its rows, in rows: reading and widening it.
TOKEN_ROWS = 4
# With `deterministic`, the pieces of a context depend on the sequence's own lengths alone.
FIXED_TOKENS = 20 * CUT_TOKENS
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
    def token_cost(self) -> int:
        return self.rows + TOKEN_ROWS

    @property
    def cost(self) -> int:
        return self.seen * self.token_cost


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
    if deterministic:
        tiles_of = _count_by_sequence(tiles)
        cuts = {tile: _fixed_cuts(tile, tiles_of[tile.sequence]) for tile in tiles}
    else:
        cuts = _deal(tiles, threads)
    items: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    slots = 0
    for tile in tiles:
        pieces = _ranges(tile, cuts[tile])
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


def _deal(tiles: Sequence[_Tile], threads: int) -> dict[_Tile, list[int]]:
    """Where each tile's context is cut: the longest first, whole as long as they fit into a thread's share."""
    share = -(-sum(tile.cost for tile in tiles) // threads)
    loads = [0] * threads
    return {tile: _place(tile, loads, share) for tile in sorted(tiles, key=lambda tile: -tile.cost)}


def _place(tile: _Tile, loads: list[int], share: int) -> list[int]:
    """Adds a tile to the threads' loads, a heap; the context tokens at which it is cut for that."""
    late = share // 8
    levels: tuple[int, ...] = (share,)
    if len(loads) > 1 and late >= LATE_TOKENS * tile.token_cost:
        levels = (share - 2 * late, share - late, share)
    room = share if len(levels) == 1 or tile.cost <= 2 * late else levels[0]
    if loads[0] + tile.cost <= room + share // 32:
        heapreplace(loads, loads[0] + tile.cost)
        return []
    cuts: list[int] = []
    least, done = LEAST_TOKENS * tile.token_cost, 0
    for level in levels:
        while level - loads[0] >= least and tile.cost - done >= 2 * least:
            left = tile.cost - done
            piece = level - loads[0] if level - loads[0] <= left - least else left
            heapreplace(loads, loads[0] + piece)
            done += piece
            cuts.append(round(done / tile.token_cost / CUT_TOKENS) * CUT_TOKENS)
    heapreplace(loads, loads[0] + tile.cost - done)
    return cuts if done < tile.cost else cuts[:-1]


def _fixed_cuts(tile: _Tile, tiles: int) -> list[int]:
    count = max(1, min(tile.seen // FIXED_TOKENS, FIXED_PIECES // tiles))
    steps = -(-tile.seen // CUT_TOKENS)
    return [steps * i // count * CUT_TOKENS for i in range(1, count)]


def _ranges(tile: _Tile, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The last also holds what only a call without causal mask sees."""
    return list(zip((0, *cuts), (*cuts, tile.context), strict=True))


def _count_by_sequence(tiles: Iterable[_Tile]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for tile in tiles:
        counts[tile.sequence] = counts.get(tile.sequence, 0) + 1
    return counts


def _records(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
    return integers(value for row in rows for value in row).view(-1, width)
