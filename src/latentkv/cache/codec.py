"""Rows in and out of their stored form. The reference for every kernel that reads or writes the cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentkv.cache.layout import RowLayout
from latentkv.errors import ShapeError, sentence

TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def encode_rows(layout: RowLayout, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows [T, row_elements] in the storage dtype from one tensor [T, elements] per part, of any float dtype.

    Rounds to nearest even; what float16 cannot hold, from 65520 on, becomes an infinity.
    Raises ShapeError when a part is missing, unknown or of the wrong width.
    """
    if set(parts) != set(layout.part_names):
        raise ShapeError(sentence("row parts", expected=list(layout.part_names), got=sorted(parts)))
    for part in layout.parts:
        if parts[part.name].ndim != 2 or parts[part.name].shape[1] != part.elements:
            raise ShapeError(sentence(part.name, expected=f"[T, {part.elements}]", got=list(parts[part.name].shape)))
    dtype = TORCH_DTYPE[layout.storage_dtype]
    return torch.cat([parts[name].to(dtype) for name in layout.part_names], dim=1)


def decode_rows(layout: RowLayout, rows: Tensor) -> dict[str, Tensor]:
    """The parts of rows [..., row_elements] as float32 tensors [..., elements]; the inverse of `encode_rows`."""
    if rows.shape[-1] != layout.row_elements:
        raise ShapeError(sentence("rows", expected=f"[..., {layout.row_elements}]", got=list(rows.shape)))
    pieces = torch.split(rows, [part.elements for part in layout.parts], dim=-1)
    return {part.name: piece.float() for part, piece in zip(layout.parts, pieces, strict=True)}
