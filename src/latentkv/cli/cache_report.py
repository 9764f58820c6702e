"""What a model's cache costs beside the attention it stands for.

All bytes come from `latentkv.cache.layout`; this file only chooses what to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from latentkv.cache.layout import FORMATS, layout_for
from latentkv.geometry import AttentionGeometry, Geometry, MLAGeometry

GQA_GROUPS = 8
GIB = 1 << 30
GB = 10**9


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes of one form of attention in one cache format."""

    attention: str
    format: str
    bytes_per_token_and_layer: int
    bytes_per_token: int
    context_bytes: int
    ratio_to_own: float


def own_name(geometry: Geometry) -> str:
    """ "MLA", "GQA-3" (three KV heads), "MHA" or "MQA"."""
    if isinstance(geometry, MLAGeometry):
        return "MLA"
    return _attention_name(geometry)


def compared_with(geometry: Geometry) -> tuple[AttentionGeometry, ...]:
    """MHA, GQA and MQA whose heads have the same number and shape as this model's, without the model's own form."""
    heads = geometry.num_attention_heads
    if isinstance(geometry, MLAGeometry):
        head_dim, groups = geometry.qk_nope_head_dim + geometry.query_rope_dim, geometry.rope_groups
    else:
        head_dim, groups = geometry.head_dim, heads
    kv_heads = sorted({heads, groups, *((GQA_GROUPS,) if heads % GQA_GROUPS == 0 else ()), 1}, reverse=True)
    mha = AttentionGeometry(geometry.num_hidden_layers, heads, heads, head_dim, geometry.v_head_dim)
    forms = (replace(mha, num_key_value_heads=count) for count in kv_heads)
    return tuple(form for form in forms if form != geometry)


def cache_costs(geometry: Geometry, *, context_tokens: int) -> tuple[CacheCost, ...]:
    """The model's own cache first, then what it is compared with, each in every format."""
    costs: list[CacheCost] = []
    for form in (geometry, *compared_with(geometry)):
        name = own_name(form)
        costs.extend(_cost(name, form, format, geometry, context_tokens) for format in FORMATS)
    return tuple(costs)


def _cost(name: str, form: Geometry, format: str, own: Geometry, context_tokens: int) -> CacheCost:
    layout = layout_for(form, format)
    return CacheCost(
        attention=name,
        format=format,
        bytes_per_token_and_layer=layout.row.row_bytes,
        bytes_per_token=layout.bytes_per_token,
        context_bytes=layout.bytes_per_token * context_tokens,
        ratio_to_own=layout.bytes_per_token / layout_for(own, format).bytes_per_token,
    )


def _attention_name(geometry: AttentionGeometry) -> str:
    return f"GQA-{geometry.num_key_value_heads}" if geometry.kind == "gqa" else geometry.kind.upper()
