"""Recognises attention that latentkv must not guess at, by the configuration fields that switch it on.

A cache sized or run as plain attention for one of these models would be wrong without any sign of it, so each is
refused with the field, its value and what it means. Knows nothing of the sizes that plain attention needs.
"""

from __future__ import annotations

from latentkv.errors import UnsupportedModelError
from latentkv.geometry_fields import Fields

Found = tuple[str, str] | None

COMPRESSED = "some layers keep one entry for several tokens (compressed attention)"
LINEAR = "some layers keep a fixed-size state instead of a row per token (linear attention or a state-space model)"
SPARSE = "a query sees only tokens that an indexer picks, and the indexer caches keys of its own (sparse attention)"
SHARED = "some layers reuse the keys and values of another layer (cross-layer sharing)"
SINKS = "a learned term is added to each head's softmax (attention sinks)"
WINDOW = "some or all layers see only the most recent tokens (sliding-window or chunked attention)"
ENCODER = "the decoder also attends to an encoder (encoder-decoder model)"

SWITCHES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (ENCODER, ("is_encoder_decoder",)),
    (COMPRESSED, ("compress_ratios", "compress_rates")),
    (SPARSE, ("index_topk", "index_n_heads", "index_head_dim", "sparse_config", "sparse_attention_config")),
    (SHARED, ("num_kv_shared_layers", "use_cla")),
    (SINKS, ("attention_sinks", "use_attention_sinks", "add_full_attention_sink_bias")),
)
# What an explicit list of full-attention `layer_types` overrules: Granite carries Mamba sizes for layers it lacks.
LAYER_SWITCHES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        LINEAR,
        (
            "linear_attn_config",
            "num_linear_attention_layers",
            "linear_num_key_heads",
            "layers_block_type",
            "hybrid_override_pattern",
            "attn_layer_period",
            "full_attn_idxs",
            "block_types",
            "ssm_cfg",
            "state_size",
            "ssm_state_size",
            "mamba_d_state",
        ),
    ),
    (WINDOW, ("attention_chunk_size", "attention_window_size")),
)
INTERVALS = ("full_attention_interval", "layer_group_size")
# Lists of one number per layer, and the number that stands for full attention.
PATTERNS = (("attn_type_list", 1, LINEAR), ("hybrid_layer_pattern", 0, WINDOW))
PLAIN_LAYERS = frozenset({"full_attention", "attention", "full", "global"})
LAYER_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (COMPRESSED, ("compress",)),
    (SPARSE, ("index", "sparse")),
    (WINDOW, ("sliding", "chunked", "local", "window")),
    (LINEAR, ("linear", "kda", "delta", "mamba", "ssm", "conv", "recurrent", "lightning")),
)


def refuse_unsupported(fields: Fields) -> None:
    """Raise UnsupportedModelError, with field, value and meaning, unless every layer caches one row for every token."""
    found = _switched_on(fields, SWITCHES) or _layer_types(fields)
    if found is None and not _states_layer_types(fields):
        found = _switched_on(fields, LAYER_SWITCHES) or _interval(fields) or _pattern(fields) or _sliding_window(fields)
    if found is not None:
        field, meaning = found
        raise UnsupportedModelError(
            f"{field} = {_brief(fields[field])}: {meaning}; latentkv supports models in which every layer caches one "
            "row for every token of the context."
        )


def _switched_on(fields: Fields, switches: tuple[tuple[str, tuple[str, ...]], ...]) -> Found:
    """A switch is on when its value is neither null, false, zero nor empty."""
    for meaning, names in switches:
        for name in names:
            if fields.get(name):
                return name, meaning
    return None


def _states_layer_types(fields: Fields) -> bool:
    return isinstance(fields.get("layer_types"), list | tuple)


def _layer_types(fields: Fields) -> Found:
    kinds = fields.get("layer_types")
    if not isinstance(kinds, list | tuple):
        return None
    for kind in kinds:
        if kind not in PLAIN_LAYERS:
            return "layer_types", _layer_meaning(str(kind))
    return None


def _layer_meaning(kind: str) -> str:
    for meaning, words in LAYER_WORDS:
        if any(word in kind for word in words):
            return meaning
    return f"there are layers of the unknown kind {kind!r}"


def _interval(fields: Fields) -> Found:
    """An interval of 1 makes every layer a full-attention layer."""
    for name in INTERVALS:
        if fields.get(name) not in (None, 0, 1):
            return name, LINEAR
    return None


def _pattern(fields: Fields) -> Found:
    for name, plain, meaning in PATTERNS:
        numbers = fields.get(name)
        if isinstance(numbers, list | tuple) and any(number != plain for number in numbers):
            return name, meaning
    return None


def _sliding_window(fields: Fields) -> Found:
    """A window counts only where it can hide a token: Qwen2 and Qwen3 carry the field with the window switched off."""
    window = fields.get("sliding_window")
    if not window or fields.get("use_sliding_window") is False:
        return None
    if _at_least(fields.get("max_window_layers"), fields.get("num_hidden_layers")):
        return None
    if _at_least(window, fields.get("max_position_embeddings")):
        return None
    return "sliding_window", WINDOW


def _at_least(value: object, bound: object) -> bool:
    return isinstance(value, int) and isinstance(bound, int) and value >= bound


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
