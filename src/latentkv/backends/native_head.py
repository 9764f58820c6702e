"""MLA's head form on the native kernel: every head's keys and values are expanded from the context, then attended to.

The kernel does all of it, in memory of fixed size for each thread: csrc/kernels/head_form.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkv.backends.native_codes import native_codes
from latentkv.backends.native_project import readable
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.ops.absorb import UpProjection

if TYPE_CHECKING:
    from latentkv._native import Isa

# Of keys and values that lie expanded at once, for each thread: what a second-level cache keeps beside other things.
STRETCH_BYTES = 2**20


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
    Raises ShapeError when pages of the context are missing or not in the cache.
    """
    new, heads, _ = query.shape
    out = query.new_empty(new, heads, up.w_uv.shape[1])
    lse = torch.empty(new, heads, dtype=torch.float32)
    w_uk, w_uv = readable(up.w_uk), readable(up.w_uv)
    if w_uk.dtype != w_uv.dtype:
        w_uk, w_uv = w_uk.float(), w_uv.float()
    isa.head_form(
        out,
        lse,
        query,
        cache.rows,
        batch.page_table,
        index,
        batch.lengths[index][1],
        w_uk,
        w_uv,
        rope_groups,
        scale,
        causal,
        torch.get_num_threads(),
        STRETCH_BYTES,
        codes=native_codes(cache.layout) if cache.layout.coded else None,
    )
    return out, lse
