"""Absorption (DeepSeek-V2, arXiv:2405.04434, section 2.1.2): W_UK moves into the query, W_UV into the output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentkv.cache.rotation import rotate
from latentkv.errors import ShapeError, sentence


@dataclass(frozen=True)
class UpProjection:
    """The two halves of W_UKV, per head (DeepSeek-V2, equations 10 and 11).

    w_uk: [H, N, L] key half:   k_nope = c @ w_ukᵀ
    w_uv: [H, V, L] value half: v = c @ w_uvᵀ
    """

    w_uk: Tensor
    w_uv: Tensor

    @staticmethod
    def from_kv_b_proj(weight: Tensor, *, num_heads: int, qk_nope_head_dim: int) -> UpProjection:
        """Views (no copy) of a checkpoint's `kv_b_proj.weight` [H*(N+V), L]."""
        if weight.ndim != 2 or weight.shape[0] % num_heads or weight.shape[0] // num_heads < qk_nope_head_dim:
            raise ShapeError(sentence("kv_b_proj.weight", expected="[H*(N+V), L]", got=list(weight.shape)))
        per_head = weight.view(num_heads, -1, weight.shape[1])
        return UpProjection(per_head[:, :qk_nope_head_dim], per_head[:, qk_nope_head_dim:])

    def rotated(self) -> UpProjection:
        """The same for latents stored rotated (cache/rotation.py): W_UK Qᵀ and W_UV Qᵀ, computed in float32."""
        return UpProjection(*(rotate(weight).to(weight.dtype) for weight in (self.w_uk, self.w_uv)))


def absorb_query(q_nope: Tensor, w_uk: Tensor) -> Tensor:
    """`q_latent = q_nope @ W_UK`: [T, H, N] and [H, N, L] give [T, H, L]; so that q_latent · c == q_nope · k_nope."""
    return (q_nope.transpose(0, 1) @ w_uk).transpose(0, 1)


def expand_output(o_latent: Tensor, w_uv: Tensor) -> Tensor:
    """`o = o_latent @ W_UVᵀ`: [T, H, L] and [H, V, L] give [T, H, V]."""
    return (o_latent.transpose(0, 1) @ w_uv.transpose(1, 2)).transpose(0, 1)


def expand_latent(latent: Tensor, up: UpProjection) -> tuple[Tensor, Tensor]:
    """Keys and values of every head from latents [S, L]: k_nope [H, S, N] and v [H, S, V]."""
    return latent @ up.w_uk.transpose(1, 2), latent @ up.w_uv.transpose(1, 2)
