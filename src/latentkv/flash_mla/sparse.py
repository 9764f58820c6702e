"""Token-level sparse decoding: each query token over the cached rows that its indices name, in one cache or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from latentkv.flash_mla.checks import FLOAT32, INT32, check_optional, check_tensor, check_values
from latentkv.flash_mla.metadata import FlashMLASchedMeta, lengths_of
from latentkv.flash_mla.rows import check_rows, per_sequence, single_rows
from latentkv.flash_mla.selection import Selection, attend_selected
from latentkv.ops.sparse import first_slots

# Names of cache, indices and number of indices that count: the arguments of the first and of the second cache.
NAMES = (("k_cache", "indices", "topk_length"), ("extra_k_cache", "extra_indices_in_kvcache", "extra_topk_length"))


@dataclass(frozen=True)
class CacheChoice:
    """A cache, the indices into it and how many of them count; not checked yet."""

    cache: object
    indices: object
    lengths: object


def sparse_decode(
    q: Tensor,
    choices: Sequence[CacheChoice],
    attn_sink: object,
    meta: FlashMLASchedMeta,
    *,
    value_width: int,
    scale: float,
    fp8: bool,
) -> tuple[Tensor, Tensor]:
    """See `flash_mla_with_kvcache`: one or two caches, each with its indices."""
    batch, query_len, heads = q.shape[:3]
    sink = check_optional("attn_sink", attn_sink, shape=(heads,), dtypes=FLOAT32)
    sizes: dict[str, object] = {
        "batch size": batch,
        "queries of a sequence": query_len,
        "num_heads_q": heads,
        "num_heads_k": 1,
        "num_q_tokens_per_head_k": query_len * heads,
        "causal": False,
        "is_fp8_kvcache": fp8,
        "caches": len(choices),
    }
    selections: list[Selection] = []
    for choice, names in zip(choices, NAMES, strict=False):
        cache = check_rows(names[0], choice.cache, q, groups=1, value_width=value_width, fp8=fp8)
        selections.append(_select(q, cache, choice, names, sizes))
    meta.bind(sizes)
    out, lse = attend_selected(q.detach().flatten(0, 1), selections, value_width=value_width, scale=scale, sink=sink)
    return per_sequence(out, lse, batch, query_len)


def _select(
    q: Tensor, cache: Tensor, choice: CacheChoice, names: tuple[str, str, str], sizes: dict[str, object]
) -> Selection:
    """One cache's rows and slots [B * s_q, K]; its sizes and lengths are added to `sizes`."""
    cache_name, indices_name, lengths_name = names
    indices = check_tensor(indices_name, choice.indices, shape=(*q.shape[:2], "K"), dtypes=INT32)
    lengths = check_optional(lengths_name, choice.lengths, shape=(q.shape[0],), dtypes=INT32)
    topk = indices.shape[2]
    check_values(lengths_name, lengths, least=0, most=topk, what=f"{indices_name} of a token")
    prefix = cache_name.removesuffix("k_cache")
    sizes |= {f"{prefix}page size": cache.shape[1], f"{prefix}topk": topk, lengths_name: lengths_of(lengths)}
    per_token = None if lengths is None else lengths.repeat_interleave(q.shape[1])
    return Selection(*single_rows(cache_name, cache, first_slots(indices.flatten(0, 1), per_token)))
