"""Attention as written in the paper, in float64, one token and one head at a time (DeepSeek-V2, arXiv:2405.04434).

Nothing here is shared with src/latentkv: no paging, no absorption, no masks, only loops over what a token may see. New
token i of a sequence that brings `query` tokens and has `context` sees the first `context - query + i + 1` of them.
Each function returns out [T, H, V] and the natural-log LSE [T, H], both float64; zeros and -inf where nothing is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Lengths = Sequence[tuple[int, int]]
Contexts = Sequence[Mapping[str, Tensor]]
# (sequence, head) -> keys [S, D] and values [S, V]
KeysValues = Callable[[int, int], tuple[Tensor, Tensor]]


def mla_reference(
    query: Tensor,
    contexts: Contexts,
    lengths: Lengths,
    *,
    w_uk: Tensor,
    w_uv: Tensor,
    scale: float,
    causal: bool = True,
    rope_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """MLA in head form. query [T, H, N+Rq], w_uk [H, N, L], w_uv [H, V, L]; rows "latent" [S, L] and "rope" [S, R]."""
    heads = query.shape[1]

    def keys_values(sequence: int, head: int) -> tuple[Tensor, Tensor]:
        latent, rope = contexts[sequence]["latent"], contexts[sequence]["rope"]
        k_nope = latent @ w_uk[head].double().T  # equation 10
        k_rope = _rope_of_head(rope, head, heads, rope_groups)  # equation 15: one key for all heads
        return torch.cat([k_nope, k_rope], dim=1), latent @ w_uv[head].double().T  # equations 17 and 11

    return _attend(query, lengths, keys_values, width=w_uv.shape[1], scale=scale, causal=causal)


def absorbed_reference(
    query: Tensor,
    contexts: Contexts,
    lengths: Lengths,
    *,
    scale: float,
    causal: bool = True,
    rope_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attention on the latent itself. query [T, H, L+Rq] already multiplied by W_UK; out [T, H, L] still latent."""
    heads = query.shape[1]

    def keys_values(sequence: int, head: int) -> tuple[Tensor, Tensor]:
        latent, rope = contexts[sequence]["latent"], contexts[sequence]["rope"]
        return torch.cat([latent, _rope_of_head(rope, head, heads, rope_groups)], dim=1), latent

    width = contexts[0]["latent"].shape[1]
    return _attend(query, lengths, keys_values, width=width, scale=scale, causal=causal)


def kv_reference(
    query: Tensor, contexts: Contexts, lengths: Lengths, *, groups: int, scale: float, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention. query [T, H, D]; rows "key" [S, G*D] and "value" [S, G*V]; head h reads group h*G//H."""
    heads = query.shape[1]

    def keys_values(sequence: int, head: int) -> tuple[Tensor, Tensor]:
        group = head * groups // heads
        key, value = contexts[sequence]["key"], contexts[sequence]["value"]
        return key.chunk(groups, dim=1)[group], value.chunk(groups, dim=1)[group]

    width = contexts[0]["value"].shape[1] // groups
    return _attend(query, lengths, keys_values, width=width, scale=scale, causal=causal)


def _rope_of_head(rope: Tensor, head: int, heads: int, rope_groups: int) -> Tensor:
    block = rope.shape[1] // rope_groups
    first = head * rope_groups // heads * block
    return rope[:, first : first + block]


def _attend(
    query: Tensor, lengths: Lengths, keys_values: KeysValues, *, width: int, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = query.shape
    out = torch.zeros(tokens, heads, width, dtype=torch.float64)
    lse = torch.full((tokens, heads), -torch.inf, dtype=torch.float64)
    first = 0
    for sequence, (new, context) in enumerate(lengths):
        for head in range(heads):
            keys, values = keys_values(sequence, head)
            for i in range(new):
                seen = context - new + i + 1 if causal else context
                scores = keys[:seen] @ query[first + i, head].double() * scale  # equation 18
                lse[first + i, head] = scores.logsumexp(dim=0)
                out[first + i, head] = scores.softmax(dim=0) @ values[:seen]
        first += new
    return out, lse
