"""Attention of query tokens over rows that each of them selects.

A dense call over pages of one token: each query token is a sequence whose page table is its valid slots. Rows are
therefore read where they lie, nothing is gathered, and every backend can do it. Arguments were checked by the callers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.attend import attend
from latentkv.backends.base import Attended
from latentkv.cache.batch import UNUSED_PAGE, Batch
from latentkv.flash_mla.rows import layer_of
from latentkv.ops.merge import merge
from latentkv.ops.sparse import apply_sink, valid_slots

# The float32 output of one tile of tokens: bounds the working memory of a long prompt.
TILE_BYTES = 64 * 2**20
# A power of two, so that sharpening rounds nothing; so large that log(K) / SHARPEN is nothing in float32.
SHARPEN = 2.0**30
# Values summed in vain for the largest score: one vector of the widest instruction set.
LEAST_WIDTH = 16


@dataclass(frozen=True)
class Selection:
    """Rows and the slots [T, K] each query token attends to; outside 0 ... N-1 they are nothing.

    rows: [N, 1, D], or [N, 1, bytes] uint8 for fp8 rows
    """

    rows: Tensor
    slots: Tensor


def attend_selected(
    query: Tensor, selections: Sequence[Selection], *, value_width: int, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of query [T, H, D] over all selections together.

    Returns out [T, H, value_width] in the query's dtype, computed in float32 and rounded once, and lse [T, H] float32.
    The sink [H] is in out alone.
    """
    out = query.new_empty(*query.shape[:2], value_width)
    lse = torch.empty(query.shape[:2], dtype=torch.float32)
    for tile in _tiles(query, value_width):
        parts = [_attend_tile(query, selection, tile, value_width, scale) for selection in selections]
        tile_out, tile_lse = parts[0].out, parts[0].lse
        if len(parts) > 1:
            tile_out, tile_lse = merge([part.out for part in parts], [part.lse for part in parts])
        out[tile] = apply_sink(tile_out, tile_lse, sink).to(out.dtype)
        lse[tile] = tile_lse
    return out, lse


def largest_scores(query: Tensor, selection: Selection, *, scale: float) -> Tensor:
    """The largest scaled score [T, H] float32 of each token and head, -inf where nothing is selected.

    No backend returns it, so it is a second call, for n-fold sharpened scores: their LSE divided by n exceeds the
    largest score by at most log(K) / n. It costs the dot products again, and hardly any values.
    """
    largest = torch.empty(query.shape[:2], dtype=torch.float32)
    width = min(LEAST_WIDTH, query.shape[2])
    for tile in _tiles(query, width):
        largest[tile] = _attend_tile(query, selection, tile, width, scale * SHARPEN).lse / SHARPEN
    return largest


def _tiles(query: Tensor, value_width: int) -> Iterator[slice]:
    tokens, heads, _ = query.shape
    step = max(1, TILE_BYTES // max(1, 4 * heads * value_width))
    for begin in range(0, tokens, step):
        yield slice(begin, min(begin + step, tokens))


def _attend_tile(query: Tensor, selection: Selection, tile: slice, value_width: int, scale: float) -> Attended:
    table, counts = _compact(selection.slots[tile], selection.rows.shape[0])
    batch = Batch(
        query_start=torch.arange(counts.numel() + 1),
        context_len=counts,
        page_table=table,
        positions=counts - 1,
        slots=torch.empty(0, dtype=torch.int64),  # nothing is written
        page_tokens=1,
    )
    layer = layer_of(selection.rows, width=query.shape[2], value_width=value_width)
    return attend(query[tile].float(), layer, batch, scale=scale, causal=False)


def _compact(slots: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The valid slots of each token at the front of its row, in order, and how many they are."""
    valid = valid_slots(slots, count)
    counts = valid.sum(dim=1)
    table = torch.full(slots.shape, UNUSED_PAGE, dtype=torch.int32)
    table[torch.arange(slots.shape[1]) < counts[:, None]] = slots[valid].to(torch.int32)
    return table, counts
