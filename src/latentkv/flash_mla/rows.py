"""Views that `attend` takes of FlashMLA's tensors, and FlashMLA's LSE of ours. Copies no cache."""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.cache.latent import LayerCache
from latentkv.cache.layout import mla_row
from latentkv.errors import ShapeError, sentence
from latentkv.ops.sparse import valid_slots

FORMAT = {torch.bfloat16: "bf16", torch.float32: "f32"}


def layer_of(rows: Tensor, value_width: int) -> LayerCache:
    """Rows [pages, P, D], any strides but the last, as the cache of absorbed MLA: latent = values, rope = the rest."""
    width = rows.shape[2]
    return LayerCache(rows, mla_row(FORMAT[rows.dtype], kv_lora_rank=value_width, qk_rope_head_dim=width - value_width))


def single_rows(name: str, cache: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """A cache [pages, P, 1, D] seen as pages of one row [N, 1, D], and slots page * P + offset numbered accordingly.

    Pages may lie apart by a whole number of rows (those between are in N too); slots outside the cache become -1.
    Raises ShapeError, in `name`'s name, for other strides.
    """
    pages, page_tokens, _, width = cache.shape
    # Strides of a dimension of size 1 say nothing.
    row_stride = cache.stride(1) if page_tokens > 1 else cache.stride(0)
    apart, rest = divmod(cache.stride(0), row_stride) if pages > 1 and row_stride else (page_tokens, 0)
    count = (pages - 1) * apart + page_tokens if pages else 0
    if rest or count > torch.iinfo(torch.int32).max:
        raise ShapeError(
            sentence(
                name,
                expected="pages a whole number of rows apart, within 2**31 rows",
                got=f"strides {list(cache.stride())}",
                remedy="Call .contiguous().",
            )
        )
    valid = valid_slots(slots, pages * page_tokens)
    numbered = slots if apart == page_tokens else slots // page_tokens * apart + slots % page_tokens
    rows = cache.as_strided((count, 1, width), (row_stride, row_stride, 1))
    return rows, numbered.masked_fill(~valid, -1)


def empty_to_infinity(lse: Tensor) -> Tensor:
    """FlashMLA says +inf where our LSE says -inf: nothing seen."""
    return lse.masked_fill_(lse == -torch.inf, torch.inf)


def per_sequence(out: Tensor, lse: Tensor, sequences: int, query_len: int) -> tuple[Tensor, Tensor]:
    """out [B * s_q, H, V] and lse [B * s_q, H] as [B, s_q, H, V] and [B, H, s_q], empty rows +inf."""
    heads, width = out.shape[1:]
    lse = empty_to_infinity(lse).view(sequences, query_len, heads)
    return out.view(sequences, query_len, heads, width), lse.transpose(1, 2).contiguous()
