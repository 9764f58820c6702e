"""Ragged batches over a paged cache in which everything that must not be read is poisoned.

All storage starts as NaN (where rows are codes, as bytes of ones: their scales are NaN) and only real context is
written, so page tails, unused pages and other layers stay NaN. Pages are taken in random order, page-table slots past a
context hold huge page numbers, and queries and index tensors are strided views. A computation that reads one element
too many gives NaN or an index error, not a plausible number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentkv.cache.batch import UNUSED_PAGE, Batch
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.cache.layout import CacheLayout, RowLayout

HUGE_PAGES = (UNUSED_PAGE, 2_147_480_000, 1_900_000_000)
LAYERS = 2
SPARE_PAGES = 5


@dataclass(frozen=True)
class Hostile:
    """One step's batch, the poisoned cache it runs over, and the plain tensors a dense reference needs.

    contexts: per sequence, one float64 tensor [context, elements] per row part, as rounded by the cache's format
    """

    batch: Batch
    cache: LatentCache
    layer: LayerCache
    contexts: tuple[dict[str, Tensor], ...]

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(query_len, context_len) of every sequence."""
        return self.batch.lengths


def hostile_case(
    row: RowLayout, lengths: Sequence[tuple[int, int]], *, page_tokens: int = 64, seed: int = 0
) -> Hostile:
    """A poisoned cache holding unit normal rows for sequences of these (query_len, context_len)."""
    generator = torch.Generator().manual_seed(seed)
    layout = CacheLayout(row, LAYERS, page_tokens)
    counts = [layout.pages_for(context) for _, context in lengths]
    cache = LatentCache(layout, sum(counts) + SPARE_PAGES)
    poison(cache.storage)
    order = torch.randperm(cache.num_pages, generator=generator).tolist()
    pages = [[order.pop() for _ in range(count)] for count in counts]
    batch = Batch.build(
        query_lens=[query for query, _ in lengths],
        context_lens=[context for _, context in lengths],
        pages=pages,
        page_tokens=page_tokens,
    )
    layer = cache.layer(LAYERS - 1)
    contexts = tuple(
        _write_context(layer, table, context, generator) for table, (_, context) in zip(pages, lengths, strict=True)
    )
    return Hostile(_poison_indices(batch, counts, generator), cache, layer, contexts)


def poison(storage: Tensor) -> None:
    """Fill a cache's storage with what reads back as NaN."""
    storage.fill_(torch.nan if storage.dtype.is_floating_point else 255)


def awkward_lengths(page_tokens: int) -> dict[str, list[tuple[int, int]]]:
    """Named lists of (query_len, context_len) at every boundary where paging and masking go wrong."""
    page = page_tokens
    edges = sorted({1, max(1, page - 1), page, page + 1, 2 * page, 2 * page + 3})
    return {
        "decode": [(1, context) for context in edges],
        "prefill": [(context, context) for context in edges],
        "chunk": [(min(3, context), context) for context in edges],
        "mix": [(1, page + 1), (0, 0), (page, 2 * page), (0, page + 2), (2, 2), (1, 1), (min(5, page + 3), page + 3)],
        "empty": [(0, 0), (0, 3)],
    }


def strided_normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unit normal numbers in a view whose strides are those of no contiguous tensor; what lies between is NaN."""
    generator = torch.Generator().manual_seed(seed)
    padded = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype)
    view = padded[..., 1 : 1 + shape[-1]]
    view.copy_(torch.randn(shape, generator=generator, dtype=torch.float32))
    return view


def spoil_rows(numbers: Tensor, *, middle: int) -> None:
    """Rows 1 to 7 become zeros, huge, tiny, equal, get an infinity, a NaN, and small numbers before `middle`."""
    numbers[1] = 0
    numbers[2] *= 1e30
    numbers[3] *= 1e-37
    numbers[4] = 3.0
    numbers[5, middle] = torch.inf
    numbers[6, 0] = torch.nan
    numbers[7, :middle] *= 1e-4


def _write_context(layer: LayerCache, table: list[int], context: int, generator: torch.Generator) -> dict[str, Tensor]:
    page = layer.page_tokens
    slots = torch.tensor([table[t // page] * page + t % page for t in range(context)], dtype=torch.int64)
    parts = {part.name: torch.randn(context, part.elements, generator=generator) for part in layer.layout.parts}
    layer.write(slots, parts)
    return {name: values.double() for name, values in layer.read(slots).items()}


def _poison_indices(batch: Batch, counts: Sequence[int], generator: torch.Generator) -> Batch:
    width = max(counts, default=0) + 2
    choice = torch.randint(len(HUGE_PAGES), (len(counts), width + 1), generator=generator)
    wide = torch.tensor(HUGE_PAGES, dtype=torch.int32)[choice]
    for index, count in enumerate(counts):
        wide[index, :count] = batch.page_table[index, :count]
    return replace(
        batch,
        page_table=wide[:, :width],
        query_start=_strided(batch.query_start),
        context_len=_strided(batch.context_len),
        positions=_strided(batch.positions),
        slots=_strided(batch.slots),
    )


def _strided(values: Tensor) -> Tensor:
    spread = torch.full((values.numel(), 2), torch.iinfo(torch.int64).max, dtype=torch.int64)
    spread[:, 0] = values
    return spread[:, 0]
