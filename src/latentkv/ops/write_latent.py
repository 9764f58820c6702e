"""A layer's new MLA rows, from the projection that makes latent and RoPE key to the cache. Composes other ops."""

from __future__ import annotations

from torch import Tensor

from latentkv.cache.latent import LayerCache
from latentkv.cache.rotation import rotate
from latentkv.errors import ShapeError, sentence
from latentkv.ops.norm import rms_norm
from latentkv.ops.rotate_query import rotate_query


def write_latent(
    layer: LayerCache,
    slots: Tensor,
    kv: Tensor,
    *,
    latent_norm: Tensor | None,
    latent_eps: float,
    rope_norm: Tensor | None,
    rope_eps: float,
    angles: tuple[Tensor, Tensor],
    groups: int,
    interleaved: bool,
) -> None:
    """Norm the latent, norm and rotate the RoPE key, and store row t at slots[t]; float32 throughout, rounded once.

    Where rows hold rotated latents, the latent is multiplied by cache/rotation.py's matrix after its norm.

    (DeepSeek-V2, arXiv:2405.04434, equations 9 and 15.) Mutates the layer.

    layer:       rows of the parts "latent" [L] and "rope" [R]
    slots:       [T] int64, all different
    kv:          [T, L + R] any float dtype, read only
    latent_norm: [L], the weight of the latent's RMSNorm, or None
    rope_norm:   [R / groups], the weight of an RMSNorm of each block of the RoPE key, or None
    angles:      cosine and sine, each [T, R/2] float32, block by block
    Raises IndexError, before anything is written, for a slot outside the cache; ShapeError when widths do not fit.
    """
    layout = layer.layout
    if kv.ndim != 2 or kv.shape[1] != layout.row_elements:
        raise ShapeError(sentence("kv", expected=f"[T, {layout.row_elements}]", got=list(kv.shape)))
    rope_width = layout.part("rope").elements
    if groups < 1 or rope_width % groups:
        raise ShapeError(sentence("groups", expected=f"a divisor of the {rope_width} RoPE elements", got=groups))
    _check_slots(layer, slots, len(kv))
    latent, rope = kv.float().tensor_split([layout.part("latent").elements], dim=1)
    if latent_norm is not None:
        latent = rms_norm(latent, latent_norm, eps=latent_eps)
    if layout.rotated:
        latent = rotate(latent)
    blocks = rope.reshape(len(kv), groups, rope_width // groups)
    blocks = rotate_query(
        blocks, norm=rope_norm, eps=rope_eps, angles=angles, groups=groups, interleaved=interleaved, nope=0
    )
    layer.write(slots, {"latent": latent, "rope": blocks.flatten(1)})


def _check_slots(layer: LayerCache, slots: Tensor, tokens: int) -> None:
    """Indexing would take a negative slot as counted from the end, and one row as meant for every slot."""
    if slots.shape != (tokens,):
        raise ShapeError(sentence("slots", expected=[tokens], got=list(slots.shape)))
    rows = layer.rows.shape[0] * layer.page_tokens
    outside = ((slots < 0) | (slots >= rows)).nonzero()
    if len(outside):
        position = int(outside[0])
        got = f"{int(slots[position])} at position {position}"
        raise IndexError(sentence("slots", expected=f"0 to {rows - 1}", got=got))
