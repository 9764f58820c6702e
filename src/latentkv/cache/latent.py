"""The cache's tensors: pages of rows for every layer, and reading and writing rows by slot.

Which pages belong to whom is not known here (see cache/pages.py); a slot is `page * page_tokens + offset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.cache.codec import TORCH_DTYPE, decode_rows, encode_rows
from latentkv.cache.layout import CacheLayout, RowLayout
from latentkv.cache.memory import allocate
from latentkv.errors import OptionError, sentence


@dataclass(frozen=True)
class LayerCache:
    """One layer's pages.

    rows: [pages, page_tokens, storage_elements] in the layout's storage dtype; a view of the cache, written in place.
          Reading takes any strides; writing needs pages without gaps.

    Where the layout is `rotated`, latents are written and read as they are stored, that is rotated.
    """

    rows: Tensor
    layout: RowLayout

    @property
    def page_tokens(self) -> int:
        """P, rows in a page."""
        return self.rows.shape[1]

    def write(self, slots: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Encode one tensor [T, elements] per row part and store row t at slots[t] ([T] int64). Mutates the cache."""
        self.rows.view(-1, self.layout.storage_elements)[slots] = encode_rows(self.layout, parts)

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """The rows at slots [S] int64, decoded: one float32 tensor [S, elements] per part."""
        return decode_rows(self.layout, self.rows[slots // self.page_tokens, slots % self.page_tokens])


class LatentCache:
    """`num_pages` pages for every layer of a model, allocated at once and never grown.

    storage: [layers, pages, page_tokens, storage_elements], of no value yet: no row may be read before it is written
    """

    def __init__(self, layout: CacheLayout, num_pages: int, *, device: torch.device | str = "cpu") -> None:
        if num_pages < 1:
            raise OptionError(sentence("num_pages", expected="1 or more", got=num_pages))
        self.layout = layout
        self.num_pages = num_pages
        self.storage = allocate(
            (layout.num_hidden_layers, num_pages, layout.page_tokens, layout.row.storage_elements),
            TORCH_DTYPE[layout.row.storage_dtype],
            device=device,
        )
        # Made once: a view of each layer in each step takes as long as a small kernel.
        self._layers = tuple([LayerCache(rows, layout.row) for rows in self.storage])

    @property
    def size_bytes(self) -> int:
        """Bytes really allocated."""
        return self.storage.numel() * self.storage.element_size()

    def layer(self, index: int) -> LayerCache:
        """The pages of layer `index`."""
        return self._layers[index]

    def copy_pages(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy whole pages in every layer (copy-on-write of a shared page). Mutates the target pages."""
        self.storage[:, list(target)] = self.storage[:, list(source)]

    def page_rows(self, page: int) -> bytearray:
        """A copy of one page's rows in every layer, `layout.page_bytes` bytes."""
        rows = bytearray(self.layout.page_bytes)
        self._page_view(rows).copy_(self.storage[:, page])
        return rows

    def place_rows(self, page: int, rows: bytearray) -> None:
        """Put back what `page_rows` gave, in this page or another. Mutates the page."""
        self.storage[:, page].copy_(self._page_view(rows))

    def _page_view(self, rows: bytearray) -> Tensor:
        shape = (self.storage.shape[0], *self.storage.shape[2:])
        return torch.frombuffer(rows, dtype=self.storage.dtype).view(shape)
