"""Exact bytes of a model's cache: per token and layer, for one sequence at a context, page rounding included.

Every byte comes from `latentkv.cache.layout`; this file adds them up over groups of layers that cache alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentkv.cache.layout import (
    CODE_BYTES,
    CODE_ELEMENTS,
    DEFAULT_PAGE_TOKENS,
    DTYPE_BYTES,
    CacheLayout,
    RowLayout,
    find_format,
    layout_for,
    row_layout,
)
from latentkv.geometry import Geometry
from latentkv.planner.layers import CachedLayers

INDEX_FORMAT = "fp8"


@dataclass(frozen=True, slots=True)
class GroupFootprint:
    """The bytes of `layers.count` layers that cache alike; `layout` is None for layers without rows."""

    layers: CachedLayers
    layout: CacheLayout | None
    index_row_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one of these layers, its indexer key included."""
        return (self.layout.row.row_bytes if self.layout else 0) + self.index_row_bytes

    @property
    def row_elements(self) -> int:
        """Numbers that one token's row in one of these layers stands for, its indexer key included."""
        return (self.layout.row.row_elements if self.layout else 0) + self.layers.index_elements

    def pages(self, context_tokens: int) -> int:
        """Pages that a sequence of `context_tokens` occupies in each of these layers.

        A window of W tokens can begin anywhere in a page: it touches up to ceil((W - 1) / P) + 1 pages of P tokens.
        """
        if self.layout is None:
            return 0
        pages = self.layout.pages_for(context_tokens)
        window = self.layers.window_tokens
        return pages if window is None else min(pages, self.layout.pages_for(window - 1) + 1)

    def sequence_bytes(self, context_tokens: int) -> int:
        """Bytes that one sequence occupies in all of these layers."""
        page_tokens = self.layout.page_tokens if self.layout else 0
        rows = self.pages(context_tokens) * page_tokens * self.row_bytes
        return self.layers.count * (rows + (self.layers.state_bytes or 0))


@dataclass(frozen=True, slots=True)
class Footprint:
    """The bytes of a whole model's cache in one format."""

    format: str
    page_tokens: int
    groups: tuple[GroupFootprint, ...]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one more token over all layers, while it still fits every window."""
        return sum(group.layers.count * group.row_bytes for group in self.groups)

    @property
    def elements_per_token(self) -> int:
        """Numbers cached for one token over all layers, scales not counted."""
        return sum(group.layers.count * group.row_elements for group in self.groups)

    @property
    def state_bytes(self) -> int:
        """Bytes that a sequence occupies whatever its context (states of linear layers, where the config tells)."""
        return sum(group.layers.count * (group.layers.state_bytes or 0) for group in self.groups)

    @property
    def grows(self) -> bool:
        """Whether a longer context always costs more in the end: some layer has rows and no window."""
        return any(group.layout is not None and group.layers.window_tokens is None for group in self.groups)

    def sequence_bytes(self, context_tokens: int) -> int:
        """Bytes of one sequence of `context_tokens`, rounded up to whole pages in every layer."""
        return sum(group.sequence_bytes(context_tokens) for group in self.groups)


def footprint(
    layers: Sequence[CachedLayers], *, format: str = "bf16", page_tokens: int = DEFAULT_PAGE_TOKENS
) -> Footprint:
    """The cache of `layers` in `format`, in pages of `page_tokens`.

    Indexer keys are stored as plain numbers in a plain format; in any other as in DeepSeek-V3.2, e4m3 codes with one
    float32 scale per 128. Raises OptionError for an unknown format or page size.
    """
    groups = tuple(_group(group, format, page_tokens) for group in layers)
    return Footprint(format, page_tokens, groups)


def code_bits(format: str) -> float:
    """Bits of one stored number or code of the latent, scales not counted: 16 for bf16, 6 for int6."""
    dtype = find_format(format).latent.dtype
    if dtype in DTYPE_BYTES:
        return DTYPE_BYTES[dtype] * 8
    return CODE_BYTES[dtype] * 8 / CODE_ELEMENTS[dtype]


@dataclass(frozen=True, slots=True)
class RowBytes:
    """Where the bytes of one row go, in the order of the sum: codes_only + wider_parts + scales + padding = total.

    codes_only:  every element of the row in the format's bits, as headlines count it
    wider_parts: what parts kept in a wider dtype (RoPE in bf16) and filled-up packing units cost beyond that
    """

    codes_only: int
    wider_parts: int
    scales: int
    padding: int

    @property
    def total(self) -> int:
        """Bytes of the row."""
        return self.codes_only + self.wider_parts + self.scales + self.padding


def row_bytes(geometry: Geometry, format: str) -> RowBytes:
    """Where the bytes of one token and layer go in `format`."""
    row = layout_for(geometry, format).row
    codes_only = -(-int(row.row_elements * code_bits(format)) // 8)
    stored = sum(part.size_bytes for part in row.parts)
    scales = _scale_bytes(row)
    return RowBytes(codes_only, stored - codes_only, scales, row.row_bytes - stored - scales)


def _scale_bytes(row: RowLayout) -> int:
    return sum(part.scales.size_bytes for part in row.parts if part.scales is not None)


def _group(layers: CachedLayers, format: str, page_tokens: int) -> GroupFootprint:
    coded = bool(find_format(format).latent.group)
    index_format = INDEX_FORMAT if coded else format
    index = row_layout(index_format, (("index", layers.index_elements, "latent"),)) if layers.index_elements else None
    layout = layout_for(layers.geometry, format, page_tokens=page_tokens) if layers.geometry is not None else None
    return GroupFootprint(layers, layout, index.row_bytes if index is not None else 0)
