"""Attention over a context from attention over its pieces (the LSE merge of FlashDecoding and of ring attention).

With `lse_i` the natural logarithm of piece i's sum of exponentials, the whole is

    lse = log Σ exp(lse_i)        out = Σ exp(lse_i - lse) · out_i
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentkv.errors import ShapeError, sentence


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine partial results over disjoint ranges of one context; the order of the pieces does not matter.

    outs: each [T, H, V], one float dtype; a piece whose LSE is -inf saw nothing and its `out` is never used, even NaN
    lses: each [T, H] float32, natural log
    Returns (out [T, H, V] in the dtype of `outs`, lse [T, H] float32): zeros and -inf where every piece is empty.
    Computed in float32 and relative to the largest LSE, so huge LSEs neither overflow nor vanish.
    Raises ShapeError when there is no piece or the pieces differ in shape.
    """
    _check_pieces(outs, lses)
    stacked = torch.stack([lse.float() for lse in lses])
    largest = stacked.amax(dim=0)
    # exp(-inf - -inf) is NaN: rows that are empty in every piece are shifted by 0 instead.
    shift = largest.masked_fill(largest == -torch.inf, 0.0)
    shares = (stacked - shift).exp()
    total = shares.sum(dim=0)
    weighted = torch.zeros(outs[0].shape, dtype=torch.float32, device=outs[0].device)
    for out, lse, share in zip(outs, stacked, shares, strict=True):
        weighted += (out.float() * share[..., None]).masked_fill((lse == -torch.inf)[..., None], 0.0)
    # total >= 1 unless the row is empty, and then the numerator is zero.
    return (weighted / total.clamp(min=1.0)[..., None]).to(outs[0].dtype), shift + total.log()


def _check_pieces(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    if not outs or len(outs) != len(lses):
        raise ShapeError(
            sentence(
                "outs and lses", expected="one of each per piece, at least one", got=f"{len(outs)} and {len(lses)}"
            )
        )
    for index, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.shape != outs[0].shape or out.dtype != outs[0].dtype:
            expected, got = f"{list(outs[0].shape)} {outs[0].dtype}", f"{list(out.shape)} {out.dtype}"
            raise ShapeError(sentence(f"outs[{index}]", expected=expected, got=got))
        if lse.shape != out.shape[:-1]:
            raise ShapeError(sentence(f"lses[{index}]", expected=list(out.shape[:-1]), got=list(lse.shape)))
