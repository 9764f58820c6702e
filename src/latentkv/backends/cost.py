"""What each form of MLA costs: the arithmetic behind choosing one, with two measured factors."""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.backends.base import Request


@dataclass(frozen=True, slots=True)
class Prices:
    """What an operation takes on the backend that is to run it, compared with one of attention over expanded heads.

    projection: one of the up-projections of queries and outputs (absorption)
    expansion:  one of the up-projections of the context
    latent:     one of attention over latents
    """

    projection: float = 1.0
    expansion: float = 1.0
    latent: float = 1.0


PLAIN = Prices()


def latent_cost(request: Request, *, query_len: int, context_len: int, prices: Prices = PLAIN) -> float:
    """Latent form: absorb the queries, score and sum over latents of width L, expand the outputs.

    In floating-point operations of head form's attention.
    """
    absorb = query_len * (request.qk_nope_head_dim + request.v_head_dim) * request.kv_lora_rank
    width = request.kv_lora_rank + (request.kv_lora_rank if request.qk_nope_head_dim else 0)
    pair = width + request.qk_rope_head_dim // request.rope_groups
    pairs = _pairs(query_len, context_len)
    return 2.0 * request.num_heads * (absorb * prices.projection + pairs * pair * prices.latent)


def head_cost(request: Request, *, query_len: int, context_len: int, prices: Prices = PLAIN) -> float:
    """Head form: expand the whole context to keys and values, then ordinary attention of width N + R and V."""
    expand = context_len * (request.qk_nope_head_dim + request.v_head_dim) * request.kv_lora_rank
    pair = request.qk_nope_head_dim + request.qk_rope_head_dim // request.rope_groups + request.v_head_dim
    return 2.0 * request.num_heads * (expand * prices.expansion + _pairs(query_len, context_len) * pair)


def cheaper_form(request: Request, *, query_len: int, context_len: int, prices: Prices = PLAIN) -> str:
    """ "latent" or "head", whichever costs less for one sequence."""
    latent = latent_cost(request, query_len=query_len, context_len=context_len, prices=prices)
    head = head_cost(request, query_len=query_len, context_len=context_len, prices=prices)
    return "latent" if latent <= head else "head"


def _pairs(query_len: int, context_len: int) -> int:
    """Query-key pairs under the causal mask."""
    return query_len * context_len - query_len * (query_len - 1) // 2
