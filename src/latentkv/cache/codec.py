"""Rows in and out of their stored form. The reference for every kernel that reads or writes the cache.

Numbers that are stored as codes: cache/codes.py. Where everything lies: cache/layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentkv.cache.codes import decode, encode
from latentkv.cache.layout import Part, RowLayout
from latentkv.errors import ShapeError, sentence

TORCH_DTYPE = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
}


def encode_rows(layout: RowLayout, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows [T, storage_elements] in the storage dtype from one tensor [T, elements] per part, of any float dtype.

    Rounds to nearest even; what float16 cannot hold, from 65520 on, becomes an infinity. A group of codes with an
    element that is not finite reads back as NaN.
    Raises ShapeError when a part is missing, unknown or of the wrong width.
    """
    if set(parts) != set(layout.part_names):
        raise ShapeError(sentence("row parts", expected=list(layout.part_names), got=sorted(parts)))
    for part in layout.parts:
        if parts[part.name].ndim != 2 or parts[part.name].shape[1] != part.elements:
            raise ShapeError(sentence(part.name, expected=f"[T, {part.elements}]", got=list(parts[part.name].shape)))
    if layout.coded:
        return _coded_rows(layout, parts)
    dtype = TORCH_DTYPE[layout.storage_dtype]
    return torch.cat([parts[name].to(dtype) for name in layout.part_names], dim=1)


def decode_rows(layout: RowLayout, rows: Tensor) -> dict[str, Tensor]:
    """The parts of rows [..., storage_elements] as float32 tensors [..., elements]; the inverse of `encode_rows`."""
    if rows.shape[-1] != layout.storage_elements:
        raise ShapeError(sentence("rows", expected=f"[..., {layout.storage_elements}]", got=list(rows.shape)))
    if layout.coded:
        return {part.name: _decoded(part, rows) for part in layout.parts}
    pieces = torch.split(rows, [part.elements for part in layout.parts], dim=-1)
    return {part.name: piece.float() for part, piece in zip(layout.parts, pieces, strict=True)}


def _coded_rows(layout: RowLayout, parts: Mapping[str, Tensor]) -> Tensor:
    some = parts[layout.part_names[0]]
    rows = torch.zeros(some.shape[0], layout.row_bytes, dtype=torch.uint8, device=some.device)
    if not len(rows):  # empty tensors may have strides that cannot be viewed as bytes
        return rows
    for part in layout.parts:
        if part.scales is None:
            _put(rows, part.offset_bytes, parts[part.name].to(TORCH_DTYPE[part.dtype]))
        else:
            codes, scale = encode(part.dtype, parts[part.name].float(), part.scales)
            _put(rows, part.offset_bytes, codes)
            _put(rows, part.scales.offset_bytes, scale)
    return rows


def _decoded(part: Part, rows: Tensor) -> Tensor:
    stored = _take(rows, part.offset_bytes, part.size_bytes)
    if part.scales is None:
        return stored.view(TORCH_DTYPE[part.dtype]).float()
    scale = _take(rows, part.scales.offset_bytes, part.scales.size_bytes).view(TORCH_DTYPE[part.scales.dtype])
    return decode(part.dtype, stored, scale, part.scales, elements=part.elements)


def _put(rows: Tensor, offset_bytes: int, values: Tensor) -> None:
    data = values.contiguous().view(torch.uint8)
    rows[:, offset_bytes : offset_bytes + data.shape[1]] = data


def _take(rows: Tensor, offset_bytes: int, size_bytes: int) -> Tensor:
    """A copy that is aligned, so that it can be viewed as another dtype."""
    return rows[..., offset_bytes : offset_bytes + size_bytes].contiguous().clone()
