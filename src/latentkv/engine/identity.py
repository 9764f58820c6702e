"""Whose cache rows: everything that makes the same tokens have other rows. Pages are only shared below one identity."""

from __future__ import annotations

import torch
import xxhash

from latentkv.cache.layout import CacheLayout
from latentkv.engine.runner import Model
from latentkv.models.model import Model as LoadedModel


def cache_identity(model: Model, layout: CacheLayout, adapter: str, *, all_weights: bool) -> bytes:
    """A name for the rows that this model writes in this layout with this adapter.

    The layout stands in it whole: format, parts, offsets, scales, page size.

    all_weights: with a digest of every weight beside the sample in `model.identity`, for pages that outlive the process
                 and may meet a model of which only some rows were trained further; it reads all weights once
    """
    weights = _weights_digest(model) if all_weights and isinstance(model, LoadedModel) else b""
    return b"\0".join((repr(layout).encode(), adapter.encode(), model.identity, weights))


def describe(model: Model) -> str:
    """The same for people: what kind of model, and how large."""
    if not isinstance(model, LoadedModel):
        return type(model).__name__
    source = model.config.source
    return f"{source.get('converted_from', source['model_type'])}, {model.num_parameters:,} parameters"


def _weights_digest(model: LoadedModel) -> bytes:
    state = xxhash.xxh3_128()
    for tensor in model.tensors():
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()
