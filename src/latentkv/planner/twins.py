"""The same model with another attention: MHA, GQA and MQA whose heads have the same number and shape."""

from __future__ import annotations

from dataclasses import replace

from latentkv.geometry import AttentionGeometry, Geometry, MLAGeometry

GQA_GROUPS = 8


def twins(geometry: Geometry, *, groups: int = GQA_GROUPS, key_dim: int | None = None) -> tuple[AttentionGeometry, ...]:
    """MHA, GQA and MQA of this model's heads, widest cache first, without the model's own form.

    An MLA head's key is `qk_nope_head_dim` + RoPE wide (192 for DeepSeek-V2); `key_dim` asks for another width, such
    as the 128 that many comparisons assume. GQA has `groups` KV heads, and is left out where the heads cannot be
    divided so; a model converted exactly from GQA is also compared with the GQA that it came from.
    """
    heads = geometry.num_attention_heads
    if isinstance(geometry, MLAGeometry):
        head_dim, own = geometry.qk_nope_head_dim + geometry.query_rope_dim, geometry.rope_groups
    else:
        head_dim, own = geometry.head_dim, heads
    kv_heads = sorted({heads, own, *((groups,) if heads % groups == 0 else ()), 1}, reverse=True)
    mha = AttentionGeometry(geometry.num_hidden_layers, heads, heads, key_dim or head_dim, geometry.v_head_dim)
    forms = (replace(mha, num_key_value_heads=count) for count in kv_heads)
    return tuple(form for form in forms if form != geometry)
