"""`flash_mla_sparse_fwd`: token-level sparse attention over unpaged rows."""

from __future__ import annotations

from torch import Tensor

from latentkv.flash_mla.checks import (
    FLOAT32,
    FLOATS,
    INT32,
    check_adjacent,
    check_number,
    check_optional,
    check_tensor,
    check_value_width,
    check_values,
)
from latentkv.flash_mla.rows import empty_to_infinity
from latentkv.flash_mla.selection import Selection, attend_selected, largest_scores
from latentkv.ops.sparse import first_slots


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of each query token over the rows that its indices name.

    q:           [s_q, H, D] bfloat16 or float32, any strides
    kv:          [s_kv, 1, D] in q's dtype; keys, whose first d_v numbers are the values; read in place
    indices:     [s_q, 1, K] int32; below 0 or from s_kv on: nothing, and no row is read
    sm_scale:    factor on the dot products
    attn_sink:   [H] float32; out is multiplied by exp(lse) / (exp(lse) + exp(attn_sink)), lse and max_logits are not
    topk_length: [s_q] int32, 0 to K; only so many of a token's indices are looked at

    Returns out [s_q, H, d_v] in q's dtype, and max_logits and lse [s_q, H] float32: the largest scaled score and the
    natural-log LSE. Tokens without a valid index give zeros, -inf and +inf.
    Raises ShapeError and OptionError; no gradient flows.
    """
    check_tensor("q", q, shape=("s_q", "H", "D"), dtypes=FLOATS)
    check_tensor("kv", kv, shape=("s_kv", 1, q.shape[2]), dtypes=(q.dtype,))
    check_adjacent("kv", kv)
    check_tensor("indices", indices, shape=(q.shape[0], 1, "K"), dtypes=INT32)
    check_value_width("d_v", d_v, q.shape[2])
    scale = check_number("sm_scale", sm_scale)
    sink = check_optional("attn_sink", attn_sink, shape=(q.shape[1],), dtypes=FLOAT32)
    check_optional("topk_length", topk_length, shape=(q.shape[0],), dtypes=INT32)
    check_values("topk_length", topk_length, least=0, most=indices.shape[2], what="the indices of a token")

    query = q.detach()
    selection = Selection(kv.detach(), first_slots(indices[:, 0], topk_length))
    out, lse = attend_selected(query, [selection], value_width=d_v, scale=scale, sink=sink)
    return out, largest_scores(query, selection, scale=scale), empty_to_infinity(lse)
