"""Which layer is of which kind: the many ways in which configurations spell a schedule of layers.

Knows counts and indices, no sizes.
"""

from __future__ import annotations

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.geometry_fields import Fields, optional_size

FULL, LINEAR, WINDOW = "full", "linear", "window"
SCHEDULE_FIELDS = (
    "layer_types",
    "linear_attn_config",
    "num_linear_attention_layers",
    "full_attention_interval",
    "layer_group_size",
    "hybrid_layer_pattern",
    "sliding_window",
    "attention_chunk_size",
    "linear_num_key_heads",
)
# Layers N, 2N, ... attend to everything and the others slide. Class defaults that older configurations leave unsaid.
FULL_EVERY_BY_MODEL_TYPE = {"gemma2": 2, "gpt_oss": 2, "gemma3": 6, "gemma3_text": 6}


def layer_kinds(fields: Fields, layers: int) -> list[str]:
    """The kind of each of `layers` layers. Raises ConfigError when the fields contradict each other."""
    named = _from_names(fields)
    kinds = named or _linear_schedule(fields, layers) or _window_schedule(fields, layers) or [FULL] * layers
    if len(kinds) != layers:
        raise ConfigError(sentence("the schedule of layers", expected=f"{layers} layers", got=len(kinds)))
    return kinds


def stored_layers(fields: Fields, layers: int) -> int:
    """Layers with a cache of their own: Gemma 3n's last ones reuse others', Hunyuan's share in groups."""
    shared = optional_size(fields, "num_kv_shared_layers", minimum=0) or 0
    if shared >= layers:
        raise ConfigError(sentence("config field num_kv_shared_layers", expected=f"below {layers}", got=shared))
    if fields.get("use_cla"):
        return -(-layers // (optional_size(fields, "cla_share_factor") or 2))
    return layers - shared


def indexed_layers(fields: Fields, layers: int) -> frozenset[int]:
    """Layers that run an indexer and cache its keys; the others reuse the choice of the one before."""
    modes = fields.get("indexer_types") or fields.get("index_topk_pattern")
    if isinstance(modes, list | tuple | str):
        return frozenset(layer for layer, mode in enumerate(modes) if str(mode).lower().startswith("f"))
    every = optional_size(fields, "index_topk_freq") or 1
    skipped = optional_size(fields, "index_skip_topk_offset", minimum=0)
    first = 2 if skipped is None else skipped
    return frozenset(layer for layer in range(layers) if max(layer - first + 1, 0) % every == 0)


def _from_names(fields: Fields) -> list[str] | None:
    kinds = fields.get("layer_types")
    if isinstance(kinds, list | tuple) and kinds:
        return [_kind(str(kind)) for kind in kinds]
    pattern = fields.get("hybrid_layer_pattern")
    if isinstance(pattern, list | tuple) and pattern:
        return [FULL if number == 0 else WINDOW for number in pattern]
    return None


def _kind(name: str) -> str:
    if "sliding" in name or "chunked" in name:
        return WINDOW
    return LINEAR if name in ("linear_attention", "kda") else FULL


def _linear_schedule(fields: Fields, layers: int) -> list[str] | None:
    nested = fields.get("linear_attn_config")
    if isinstance(nested, dict) and "full_attn_layers" in nested:
        full = {int(layer) - 1 for layer in nested["full_attn_layers"]}
        return [FULL if layer in full else LINEAR for layer in range(layers)]
    linear = optional_size(fields, "num_linear_attention_layers", minimum=0)
    if linear:
        return [LINEAR] * linear + [FULL] * (
            (optional_size(fields, "num_full_attention_layers") or 0) or layers - linear
        )
    for name in ("full_attention_interval", "layer_group_size"):
        every = optional_size(fields, name, minimum=0)
        if every:
            return _full_every(every, layers, LINEAR)
    if nested:
        raise UnsupportedModelError(
            "linear_attn_config without full_attn_layers: nothing says which layers keep a row per token."
        )
    return None


def _window_schedule(fields: Fields, layers: int) -> list[str] | None:
    window = optional_size(fields, "sliding_window", minimum=0) or optional_size(fields, "attention_chunk_size")
    if not window or fields.get("use_sliding_window") is False or _never_slides(fields, window, layers):
        return None
    full = optional_size(fields, "num_full_attention_layers", minimum=0)
    if full is not None:
        return [FULL] * full + [WINDOW] * (layers - full)
    every = optional_size(fields, "sliding_window_pattern") or optional_size(fields, "_sliding_window_pattern")
    every = every or FULL_EVERY_BY_MODEL_TYPE.get(str(fields.get("model_type")))
    if every:
        return _full_every(every, layers, WINDOW)
    first = optional_size(fields, "max_window_layers", minimum=0)
    if first is not None and fields.get("use_sliding_window"):
        return [FULL] * min(first, layers) + [WINDOW] * max(layers - first, 0)
    return [WINDOW] * layers


def _never_slides(fields: Fields, window: int, layers: int) -> bool:
    """Whether the window is as long as any context, or begins after the last layer."""
    longest = optional_size(fields, "max_position_embeddings")
    first = optional_size(fields, "max_window_layers", minimum=0)
    return (longest is not None and window >= longest) or (first is not None and first >= layers)


def _full_every(every: int, layers: int, other: str) -> list[str]:
    return [FULL if (layer + 1) % every == 0 else other for layer in range(layers)]
