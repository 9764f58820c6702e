"""Dense decoding: a few new tokens of every sequence over all of its pages."""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.attend import attend, plan_attend, request_for
from latentkv.cache.batch import Batch
from latentkv.errors import ShapeError, sentence
from latentkv.flash_mla.checks import INT32, check_tensor, check_values
from latentkv.flash_mla.metadata import FlashMLASchedMeta, lengths_of
from latentkv.flash_mla.rows import check_rows, layer_of, per_sequence


def dense_decode(
    q: Tensor,
    k_cache: object,
    block_table: object,
    cache_seqlens: object,
    meta: FlashMLASchedMeta,
    *,
    value_width: int,
    scale: float,
    causal: bool,
    fp8: bool,
) -> tuple[Tensor, Tensor]:
    """See `flash_mla_with_kvcache`. Each KV head is a call of its own over a strided view; they share one plan."""
    cache = _check_cache(k_cache, q, value_width=value_width, fp8=fp8)
    batch = _check_batch(q, cache, block_table, cache_seqlens)
    groups, heads = cache.shape[2], q.shape[2]
    meta.bind(
        {
            "batch size": q.shape[0],
            "queries of a sequence": q.shape[1],
            "num_heads_q": heads,
            "num_heads_k": groups,
            "num_q_tokens_per_head_k": q.shape[1] * heads // groups,
            "page size": cache.shape[1],
            "causal": causal,
            "is_fp8_kvcache": fp8,
            "topk": None,
            "cache_seqlens": lengths_of(batch.context_len),
        }
    )
    query = q.detach().flatten(0, 1).chunk(groups, dim=1)
    layers = [layer_of(cache[:, :, group], width=q.shape[3], value_width=value_width) for group in range(groups)]
    if meta.plan is None:
        meta.plan = plan_attend(request_for(query[0], layers[0], batch), batch)
    done = [
        attend(part, layer, batch, scale=scale, causal=causal, plan=meta.plan)
        for part, layer in zip(query, layers, strict=True)
    ]
    out, lse = torch.cat([part.out for part in done], dim=1), torch.cat([part.lse for part in done], dim=1)
    return per_sequence(out, lse, *q.shape[:2])


def _check_cache(k_cache: object, q: Tensor, *, value_width: int, fp8: bool) -> Tensor:
    cache = check_rows("k_cache", k_cache, q, groups="G", value_width=value_width, fp8=fp8)
    groups, heads = cache.shape[2], q.shape[2]
    if groups == 0 or heads == 0 or heads % groups:
        raise ShapeError(sentence("q", expected=f"a multiple of k_cache's {groups} KV heads", got=f"{heads} heads"))
    return cache


def _check_batch(q: Tensor, cache: Tensor, block_table: object, cache_seqlens: object) -> Batch:
    """Sequences whose context may be shorter than their new tokens, or empty. Unused table entries are not read."""
    sequences, query_len = q.shape[:2]
    pages, page_tokens = cache.shape[:2]
    table = check_tensor("block_table", block_table, shape=(sequences, "max_pages"), dtypes=INT32)
    lengths = check_tensor("cache_seqlens", cache_seqlens, shape=(sequences,), dtypes=INT32).long()
    room = table.shape[1] * page_tokens
    check_values("cache_seqlens", lengths, least=0, most=room, what="the pages that block_table holds")
    used = torch.arange(table.shape[1]) * page_tokens < lengths[:, None]
    check_values("block_table", table.masked_fill(~used, 0), least=0, most=max(0, pages - 1), what="pages of k_cache")
    return Batch(
        query_start=torch.arange(sequences + 1) * query_len,
        context_len=lengths,
        page_table=table.contiguous(),
        positions=(lengths[:, None] - query_len + torch.arange(query_len)).flatten(),
        slots=torch.empty(0, dtype=torch.int64),  # nothing is written
        page_tokens=page_tokens,
    )
