"""Attention over one sequence's context, in the three ways MLA and its baseline compute it. Plain PyTorch.

All take dense tensors of one sequence: its T new tokens are the last of its S context tokens, so new token t sees
context tokens 0 ... S - T + t. All return the output and the LSE: natural log, -inf where nothing is visible, in
which case the output is zero. Paging, batching and tiling are the business of backends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.ops.absorb import UpProjection, expand_latent


def attend_latent(
    q_latent: Tensor | None,
    q_rope: Tensor,
    latent: Tensor,
    rope: Tensor,
    *,
    scale: float,
    first_visible: int | None,
) -> tuple[Tensor, Tensor]:
    """Latent (MQA) form: every head attends to the same latents (DeepSeek-V2, section 2.1.2, absorbed).

    q_latent: [T, H, L] query times W_UK, or None when the model has no position-free part (N = 0)
    q_rope:   [T, H, Rq] rotated query; head h's block of the RoPE key is h * (R // Rq) // H
    latent:   [S, L], rope: [S, R] the cached rows, decoded
    first_visible: context tokens the first new token sees; None = every new token sees all S (not causal)
    Returns o_latent [T, H, L] and lse [T, H].
    """
    scores = _group_scores(q_rope, rope)
    if q_latent is not None:
        scores = scores + q_latent.transpose(0, 1) @ latent.T
    weights, lse = masked_softmax(scores * scale, first_visible=first_visible)
    return (weights @ latent).transpose(0, 1), lse.T


def attend_head(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope: Tensor,
    up: UpProjection,
    *,
    scale: float,
    first_visible: int | None,
) -> tuple[Tensor, Tensor]:
    """Head (MHA) form: keys and values are expanded per head first (DeepSeek-V2, equations 10 to 19).

    q_nope: [T, H, N], the rest as in `attend_latent`. Returns out [T, H, V] and lse [T, H].
    """
    k_nope, value = expand_latent(latent, up)
    scores = _group_scores(q_rope, rope) + q_nope.transpose(0, 1) @ k_nope.transpose(1, 2)
    weights, lse = masked_softmax(scores * scale, first_visible=first_visible)
    return (weights @ value).transpose(0, 1), lse.T


def attend_kv(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, first_visible: int | None
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention (Ainslie et al., arXiv:2305.13245): the baseline, also MHA and MQA.

    query: [T, H, D], key: [S, G, D], value: [S, G, V]; head h uses KV head h * G // H.
    Returns out [T, H, V] and lse [T, H].
    """
    weights, lse = masked_softmax(_group_scores(query, key.flatten(1)) * scale, first_visible=first_visible)
    heads, new, context = weights.shape
    grouped = weights.view(key.shape[1], -1, context) @ value.transpose(0, 1)
    return grouped.view(heads, new, value.shape[2]).transpose(0, 1), lse.T


def masked_softmax(scores: Tensor, *, first_visible: int | None) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension of scores [H, T, S] under the causal mask, and its LSE [H, T].

    Rows that see nothing get zero weights and -inf, where a plain softmax gives NaN. The weights are not taken as
    exp(scores - lse): at large scores the rounding of the LSE would become an error of the weights.
    """
    if first_visible is not None:
        new, context = scores.shape[-2:]
        if first_visible < context:
            visible = torch.arange(context, device=scores.device) < (
                torch.arange(new, device=scores.device)[:, None] + first_visible
            )
            scores = scores.masked_fill(~visible, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.softmax(scores, dim=-1).masked_fill((lse == -torch.inf)[..., None], 0.0)
    return weights, lse


def _group_scores(query: Tensor, key: Tensor) -> Tensor:
    """Dot products [H, T, S] of query [T, H, d] with the block of key [S, blocks * d] that each head owns."""
    new, heads, width = query.shape
    context = key.shape[0]
    if width == 0:
        return query.new_zeros(heads, new, context)
    blocks = key.shape[1] // width
    grouped = query.transpose(0, 1).reshape(blocks, heads // blocks * new, width)
    return (grouped @ key.view(context, blocks, width).permute(1, 2, 0)).view(heads, new, context)
