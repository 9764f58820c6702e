"""Token-level sparse attention: every query token names the rows it attends to (DeepSeek-V3.2). Plain PyTorch.

The reference for the gathered paths of latentkv/flash_mla. Knows no pages: a slot is a row of a flat cache. Which slots
deserve attention is the business of an indexer, which is not here either.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend_sparse(
    query: Tensor, rows: Tensor, slots: Tensor, *, scale: float, value_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of each token over its own slots, all heads sharing the same rows; a slot named twice counts twice.

    query: [T, H, D], rows: [N, D] of the same float dtype; a row's first `value_width` numbers are also its value
    slots: [T, K] any integer dtype; a slot outside 0 ... N-1 is nothing, and no row is read for it
    Returns out [T, H, value_width], the largest score [T, H] and the LSE [T, H] (natural log, both of scores times
    scale) in the query's dtype: zeros, -inf and -inf where a token has no valid slot.
    """
    tokens, heads, _ = query.shape
    out = query.new_zeros(tokens, heads, value_width)
    largest = query.new_full((tokens, heads), -torch.inf)
    lse = largest.clone()
    for token in range(tokens):
        chosen = rows[slots[token][valid_slots(slots[token], rows.shape[0])].long()]
        if chosen.shape[0] == 0:
            continue
        scores = query[token] @ chosen.T * scale
        largest[token] = scores.amax(dim=-1)
        lse[token] = scores.logsumexp(dim=-1)
        out[token] = scores.softmax(dim=-1) @ chosen[:, :value_width]
    return out, largest, lse


def valid_slots(slots: Tensor, count: int) -> Tensor:
    """Which slots name one of `count` rows: bool, the shape of `slots`."""
    return (slots >= 0) & (slots < count)


def first_slots(slots: Tensor, lengths: Tensor | None) -> Tensor:
    """The slots [T, K] with all but the first lengths[t] of token t made invalid (-1); all of them for None."""
    if lengths is None:
        return slots
    return slots.masked_fill(torch.arange(slots.shape[1]) >= lengths[:, None], -1)


def apply_sink(out: Tensor, lse: Tensor, sink: Tensor | None) -> Tensor:
    """The output when one more, valueless token with score `sink[h]` takes its share of the softmax.

    out: [T, H, V], lse: [T, H] natural log without the sink, sink: [H] or None for no sink
    Returns out * exp(lse) / (exp(lse) + exp(sink)): unchanged for a sink of -inf, zeros for +inf and for empty rows.
    """
    if sink is None:
        return out
    # -inf - -inf is NaN: an empty row keeps its zeros whatever the sink.
    share = torch.sigmoid(lse - sink).masked_fill(lse == -torch.inf, 0.0)
    return out * share[..., None]
