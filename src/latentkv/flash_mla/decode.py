"""`flash_mla_with_kvcache`: attention of a few new tokens over a paged cache, dense or token-level sparse."""

from __future__ import annotations

from torch import Tensor

from latentkv.errors import OptionError, sentence
from latentkv.flash_mla.checks import FLOATS, check_flag, check_number, check_tensor, check_value_width
from latentkv.flash_mla.dense import dense_decode
from latentkv.flash_mla.metadata import FlashMLASchedMeta, check_metadata
from latentkv.flash_mla.sparse import CacheChoice, sparse_decode

BY_KEYWORD = "Pass causal, is_fp8_kvcache and indices by keyword: softmax_scale stands before them."


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 - FlashMLA's order
    is_fp8_kvcache: bool = False,  # noqa: FBT001, FBT002
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over cached rows that are keys and whose first `head_dim_v` numbers are also the values.

    q:             [B, s_q, H, D] bfloat16 or float32, any strides
    k_cache:       [pages, P, G, D] in q's dtype, read in place, any strides but the last; head h reads KV head
                   h * G // H
    is_fp8_kvcache: k_cache is [pages, P, G, bytes] of float8_e4m3fn, uint8 or int8, whose rows are head_dim_v e4m3
                   codes, one float32 scale for each 128 of them, and D - head_dim_v bfloat16 numbers: 656 bytes for
                   D = 576, head_dim_v = 512. extra_k_cache likewise
    tile_scheduler_metadata, num_splits: from `get_mla_metadata`; reusable while sizes and lengths stay the same
    softmax_scale: factor on the dot products; D ** -0.5 for None

    Without `indices`, dense:
    block_table:   [B, max_pages] int32; entries beyond a sequence's length are never looked at
    cache_seqlens: [B] int32, tokens of each sequence including its s_q new ones; 0 and fewer than s_q are legal
    causal:        query token t sees cache_seqlens - s_q + t + 1 tokens; otherwise all

    With `indices`, sparse (G = 1, not causal; block_table and cache_seqlens are not looked at):
    indices:       [B, s_q, K] int32, page * P + offset; anything outside the cache is nothing
    attn_sink:     [H] float32; out is multiplied by exp(lse) / (exp(lse) + exp(attn_sink)), lse is not
    topk_length:   [B] int32, 0 to K; only so many indices of each token of the sequence are looked at
    extra_k_cache, extra_indices_in_kvcache, extra_topk_length: a second cache [pages2, P2, 1, D] and the indices
                   [B, s_q, K2] into it, attended to together with the first

    Returns out [B, s_q, H, head_dim_v] in q's dtype and lse [B, H, s_q] float32, natural log. Query tokens that see
    nothing give zeros and +inf.
    Raises ShapeError, OptionError and StalePlanError; no gradient flows.
    """
    meta = check_metadata(tile_scheduler_metadata, num_splits)
    check_flag("causal", causal)
    check_flag("is_fp8_kvcache", is_fp8_kvcache)
    check_tensor("q", q, shape=("B", "s_q", "H", "D"), dtypes=FLOATS)
    check_value_width("head_dim_v", head_dim_v, q.shape[3])
    scale = q.shape[3] ** -0.5
    if softmax_scale is not None:
        scale = check_number("softmax_scale", softmax_scale, remedy=BY_KEYWORD)
    if indices is None:
        _check_absent(
            attn_sink=attn_sink,
            extra_k_cache=extra_k_cache,
            extra_indices_in_kvcache=extra_indices_in_kvcache,
            topk_length=topk_length,
            extra_topk_length=extra_topk_length,
        )
        return dense_decode(
            q,
            k_cache,
            block_table,
            cache_seqlens,
            meta,
            value_width=head_dim_v,
            scale=scale,
            causal=causal,
            fp8=is_fp8_kvcache,
        )
    if causal:
        raise OptionError(sentence("causal", expected="False with indices", got=True, remedy="Select by indices."))
    choices = [CacheChoice(k_cache, indices, topk_length)]
    if extra_k_cache is None:
        _check_absent(extra_indices_in_kvcache=extra_indices_in_kvcache, extra_topk_length=extra_topk_length)
    else:
        choices.append(CacheChoice(extra_k_cache, extra_indices_in_kvcache, extra_topk_length))
    return sparse_decode(q, choices, attn_sink, meta, value_width=head_dim_v, scale=scale, fp8=is_fp8_kvcache)


def _check_absent(**options: Tensor | None) -> None:
    for name, value in options.items():
        if value is not None:
            needs = "extra_k_cache" if name.startswith("extra_") and name != "extra_k_cache" else "indices"
            raise OptionError(sentence(name, expected=f"None without {needs}", got=f"a {type(value).__name__}"))
