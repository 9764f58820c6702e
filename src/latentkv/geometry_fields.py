"""Reads sizes out of a model configuration by field name, whatever a code base calls them.

Knows names and numbers; does not know what attention is, nor which fields a model needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from latentkv.errors import ConfigError, UnsupportedModelError, sentence

Fields = Mapping[str, object]

LANGUAGE_MODEL_KEYS = ("text_config", "language_config", "llm_config")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads"),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "kv_lora_rank": ("attention_kv_lora_dim",),
    "q_lora_rank": ("attention_q_lora_dim",),
    "qk_nope_head_dim": ("attention_qk_dim",),
    "qk_rope_head_dim": ("attention_qk_rope_dim",),
    "v_head_dim": ("attention_v_dim",),
}


def language_model_fields(config: object) -> dict[str, object]:
    """The fields of the language model: `text_config` of a multimodal model, without nulls (a null means absent).

    Raises ConfigError when `config` is not a mapping.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(sentence("model configuration", expected="a JSON object", got=type(config).__name__))
    fields = {str(name): value for name, value in config.items() if value is not None}
    for key in LANGUAGE_MODEL_KEYS:
        nested = fields.get(key)
        if isinstance(nested, Mapping) and nested:
            inner = language_model_fields(nested)
            inner.setdefault("is_encoder_decoder", fields.get("is_encoder_decoder", False))
            return inner
    return fields


def optional_size(fields: Fields, name: str, *, minimum: int = 1) -> int | None:
    """The whole number in field `name` or one of its other spellings; None when there is none.

    Raises ConfigError for anything but a whole number of at least `minimum`, and for two spellings that disagree;
    UnsupportedModelError when the size is a list, one value per layer.
    """
    spelled = {key: fields[key] for key in (name, *ALIASES.get(name, ())) if fields.get(key) is not None}
    sizes = {_whole_number(key, value, minimum) for key, value in spelled.items()}
    if len(sizes) > 1:
        raise ConfigError(sentence(" and ".join(spelled), expected="one value for one size", got=sorted(sizes)))
    return sizes.pop() if sizes else None


def required_size(fields: Fields, name: str, *, why: str, minimum: int = 1) -> int:
    """Like `optional_size`, but a missing field is a ConfigError that names it and says `why` it is needed."""
    value = optional_size(fields, name, minimum=minimum)
    if value is None:
        raise ConfigError(sentence(f"config field {name}", expected=f"a whole number ({why})", got="no such field"))
    return value


def _whole_number(name: str, value: object, minimum: int) -> int:
    if isinstance(value, list | tuple):
        raise UnsupportedModelError(
            f"{name} is a list: this size differs from layer to layer, and latentkv gives every layer the same row."
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(
            sentence(f"config field {name}", expected=f"a whole number, {minimum} or more", got=repr(value))
        )
    return value
