"""Whose cache rows: everything that makes the same tokens have other rows. Pages are only shared below one identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
import xxhash
from torch import Tensor

from latentkv.cache.layout import CacheLayout
from latentkv.engine.runner import Model


@runtime_checkable
class HasTensors(Protocol):
    """A model whose weights can be listed."""

    def tensors(self) -> Iterator[Tensor]:
        """Every weight once, in a fixed order."""
        ...


def cache_identity(model: Model, layout: CacheLayout, adapter: str, *, all_weights: bool) -> bytes:
    """A name for the rows that this model writes in this layout with this adapter.

    The layout stands in it whole: format, parts, offsets, scales, page size.

    all_weights: with a digest of every weight beside the sample in `model.identity`, for pages that outlive the process
                 and may meet a model of which only some rows were trained further; it reads all weights once
    """
    weights = _weights_digest(model) if all_weights and isinstance(model, HasTensors) else b""
    return b"\0".join((repr(layout).encode(), adapter.encode(), model.identity, weights))


def _weights_digest(model: HasTensors) -> bytes:
    state = xxhash.xxh3_128()
    for tensor in model.tensors():
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()
