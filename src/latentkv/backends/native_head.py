"""MLA's head form on the native kernel: expand the context to keys and values of every head, then attend to those.

The context comes in stretches of tokens and groups of heads, so that the expanded part never exceeds a fixed size; the
kernel keeps each tile's unfinished result from one stretch to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkv.backends.native_plan import divide_stretch
from latentkv.backends.native_project import project_rows
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.errors import ShapeError, sentence
from latentkv.ops.absorb import UpProjection

if TYPE_CHECKING:
    from latentkv._native import Isa

# Context tokens expanded at once, and the bytes of their keys and values for as many heads as fit (one at least).
STRETCH_TOKENS = 4096
EXPANDED_BYTES = 32 * 2**20
FLOAT_BYTES = 4
# Floats of a slot besides the output's strips (csrc/kernels/attention_partial.h).
SLOT_ROWS = 64
STRIP = 64


def attend_expanded(
    isa: Isa,
    query: Tensor,
    cache: LayerCache,
    batch: Batch,
    index: int,
    up: UpProjection,
    *,
    rope_groups: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Sequence `index` of the batch in head form.

    query: [T, H, N+Rq] of this sequence. Returns out [T, H, V] in its dtype and lse [T, H] float32.
    """
    new, heads, width = query.shape
    context_len = batch.lengths[index][1]
    pages = _pages(cache, batch, index)
    out = query.new_zeros(new, heads, up.w_uv.shape[1])
    lse = torch.full((new, heads), -torch.inf, dtype=torch.float32)
    stretch = max(1, min(STRETCH_TOKENS, context_len))
    row_floats = width + up.w_uv.shape[1]
    together = max(1, min(heads, EXPANDED_BYTES // (stretch * row_floats * FLOAT_BYTES)))
    expanded = torch.empty(1, stretch, together, row_floats)
    threads = torch.get_num_threads()
    # Every stretch lies in the same place: "page" 0 of the expanded rows.
    page_table = torch.zeros(1, -(-context_len // stretch), dtype=torch.int32)
    for first in range(0, heads, together):
        some = slice(first, min(first + together, heads))
        count = some.stop - some.start
        part_lse = torch.full((new, count), -torch.inf, dtype=torch.float32)
        slots: Tensor | None = None
        for begin in range(0, context_len, stretch):
            work = divide_stretch(
                new, context_len, begin=begin, stretch=stretch, heads=count, causal=causal, threads=threads
            )
            if slots is None:
                slots = torch.empty(work.slots * _slot_floats(up.w_uv.shape[1]))
            tokens = torch.arange(begin, min(begin + stretch, context_len))
            _expand(isa, cache, pages, tokens, up, some, expanded, rope_groups=rope_groups)
            isa.attention(
                out[:, some],
                part_lse,
                query[:, some],
                None,
                expanded.flatten(2),
                page_table,
                work.records,
                (width, row_floats),
                (width, row_floats),
                count,
                1,
                scale,
                causal,
                threads,
                slots,
            )
        lse[:, some] = part_lse
    return out, lse


def _slot_floats(value_width: int) -> int:
    return -(-value_width // STRIP) * STRIP * SLOT_ROWS + 2 * SLOT_ROWS


def _expand(
    isa: Isa,
    cache: LayerCache,
    pages: Tensor,
    tokens: Tensor,
    up: UpProjection,
    some: slice,
    expanded: Tensor,
    *,
    rope_groups: int,
) -> None:
    """Rows [k_nope | k_rope | v] of heads `some` and these context tokens into `expanded` [1, tokens, heads, width]."""
    page_tokens, (heads, nope, _) = cache.page_tokens, up.w_uk.shape
    parts = cache.read(pages[tokens // page_tokens] * page_tokens + tokens % page_tokens)
    rows = expanded[0, : tokens.numel(), : some.stop - some.start]
    value = rows.shape[2] - up.w_uv.shape[1]
    latent = parts["latent"][:, None].expand(-1, rows.shape[1], -1)
    if nope:
        project_rows(isa, latent, up.w_uk[some], into=rows[..., :nope])
    blocks = parts["rope"].view(tokens.numel(), rope_groups, value - nope)
    rows[..., nope:value] = blocks[:, torch.arange(some.start, some.stop) * rope_groups // heads]
    project_rows(isa, latent, up.w_uv[some], into=rows[..., value:])


def _pages(cache: LayerCache, batch: Batch, index: int) -> Tensor:
    """The pages of the sequence's context. Raises ShapeError when there are too few or one is not in the cache."""
    used = -(-batch.lengths[index][1] // batch.page_tokens)
    row = batch.page_table[index, :used].long()
    name, last = f"page_table[{index}]", cache.rows.shape[0] - 1
    if row.numel() < used:
        raise ShapeError(sentence(name, expected=f"{used} pages for the context", got=row.numel()))
    if used and not (int(row.min()) >= 0 and int(row.max()) <= last):
        raise ShapeError(sentence(name, expected=f"pages 0 to {last}", got=f"{int(row.min())} to {int(row.max())}"))
    return row
