"""Views that `attend` takes of FlashMLA's tensors, and FlashMLA's LSE of ours. Copies no cache."""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.cache.latent import LayerCache
from latentkv.cache.layout import RowLayout, mla_row
from latentkv.errors import ShapeError, sentence
from latentkv.flash_mla.checks import check_adjacent, check_tensor
from latentkv.ops.sparse import valid_slots

FORMAT = {torch.bfloat16: "bf16", torch.float32: "f32", torch.uint8: "fp8"}
# What FlashMLA's users store fp8 rows in: the codes' own type, or bytes.
BYTES = (torch.float8_e4m3fn, torch.uint8, torch.int8)
FP8_ROW = "A row is head_dim_v e4m3 codes, a float32 scale for each 128 of them, and D - head_dim_v bfloat16 numbers."


def check_rows(name: str, value: object, q: Tensor, *, groups: int | str, value_width: int, fp8: bool) -> Tensor:
    """A cache [pages, P, groups, ...] of rows of q's width D: of q's dtype, or (`fp8`) bytes, returned as uint8.

    Raises ShapeError, in `name`'s name.
    """
    width = q.shape[-1]
    if not fp8:
        cache = check_tensor(name, value, shape=("pages", "P", groups, width), dtypes=(q.dtype,))
    else:
        row_bytes = row_of(torch.uint8, width=width, value_width=value_width).row_bytes
        cache = check_tensor(name, value, shape=("pages", "P", groups, row_bytes), dtypes=BYTES, remedy=FP8_ROW)
        cache = cache.view(torch.uint8)
    check_adjacent(name, cache)
    return cache.detach()


def row_of(dtype: torch.dtype, *, width: int, value_width: int) -> RowLayout:
    """The row of absorbed MLA in which values are the first part of keys of this width: latent and rope."""
    return mla_row(FORMAT[dtype], kv_lora_rank=value_width, qk_rope_head_dim=width - value_width)


def layer_of(rows: Tensor, *, width: int, value_width: int) -> LayerCache:
    """Rows [pages, P, ...], any strides but the last, as the cache of absorbed MLA."""
    return LayerCache(rows, row_of(rows.dtype, width=width, value_width=value_width))


def single_rows(name: str, cache: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """A cache [pages, P, 1, ...] as pages of one row [N, 1, ...], and slots page * P + offset numbered accordingly.

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
