"""The RoPE part of queries and keys: an optional norm per head, then the rotation. Composes ops/norm.py and rope.py."""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.errors import ShapeError, sentence
from latentkv.ops.norm import rms_norm
from latentkv.ops.rope import rotate


def rotate_query(
    query: Tensor,
    *,
    norm: Tensor | None,
    eps: float,
    angles: tuple[Tensor, Tensor],
    groups: int,
    interleaved: bool,
    nope: int,
) -> Tensor:
    """Norm and rotate every head's last Rq elements, in float32, rounded once; the first `nope` are kept as they are.

    query:  [T, H, nope + Rq] any float dtype, read only
    norm:   [Rq], the weight of an RMSNorm with epsilon `eps` before the rotation, or None
    angles: cosine and sine, each [T, groups * Rq/2] float32; head h turns with block h * groups // H
    Returns a new tensor like query. Raises ShapeError when groups does not divide H or the angles do not fit.
    """
    heads = query.shape[1]
    if groups < 1 or heads % groups:
        raise ShapeError(sentence("groups", expected=f"a divisor of the {heads} heads", got=groups))
    kept, turned = query.tensor_split([nope], dim=-1)
    by_group = _per_group(angles, tokens=len(query), groups=groups, width=turned.shape[-1])
    turned = turned.float()
    if norm is not None:
        turned = rms_norm(turned, norm, eps=eps)
    turned = turned.reshape(len(query), groups, heads // groups, turned.shape[-1])
    turned = rotate(turned, by_group, interleaved=interleaved)
    return torch.cat([kept, turned.flatten(1, 2).to(query.dtype)], dim=-1)


def _per_group(angles: tuple[Tensor, Tensor], *, tokens: int, groups: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine as [T, groups, width / 2]."""
    cos, sin = angles
    fits = width % 2 == 0 and cos.shape == sin.shape and list(cos.shape) == [tokens, groups * width // 2]
    if not fits:
        expected = f"two of [{tokens}, {groups} * {width} / 2]"
        raise ShapeError(sentence("angles", expected=expected, got=f"{list(cos.shape)} and {list(sin.shape)}"))
    shape = (tokens, groups, width // 2)
    return cos.reshape(shape), sin.reshape(shape)
