"""What each form of MLA costs, in floating-point operations: the arithmetic behind choosing one."""

from __future__ import annotations

from latentkv.backends.base import Request


def latent_flops(request: Request, *, query_len: int, context_len: int) -> int:
    """Latent form: absorb the queries, score and sum over latents of width L, expand the outputs."""
    absorb = query_len * (request.qk_nope_head_dim + request.v_head_dim) * request.kv_lora_rank
    width = request.kv_lora_rank + (request.kv_lora_rank if request.qk_nope_head_dim else 0)
    pair = width + request.qk_rope_head_dim // request.rope_groups
    return 2 * request.num_heads * (absorb + _pairs(query_len, context_len) * pair)


def head_flops(request: Request, *, query_len: int, context_len: int) -> int:
    """Head form: expand the whole context to keys and values, then ordinary attention of width N + R and V."""
    expand = context_len * (request.qk_nope_head_dim + request.v_head_dim) * request.kv_lora_rank
    pair = request.qk_nope_head_dim + request.qk_rope_head_dim // request.rope_groups + request.v_head_dim
    return 2 * request.num_heads * (expand + _pairs(query_len, context_len) * pair)


def cheaper_form(request: Request, *, query_len: int, context_len: int) -> str:
    """ "latent" or "head", whichever takes fewer operations for one sequence."""
    latent = latent_flops(request, query_len=query_len, context_len=context_len)
    head = head_flops(request, query_len=query_len, context_len=context_len)
    return "latent" if latent <= head else "head"


def _pairs(query_len: int, context_len: int) -> int:
    """Query-key pairs under the causal mask."""
    return query_len * context_len - query_len * (query_len - 1) // 2
