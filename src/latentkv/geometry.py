"""The shape of a model's attention: the only facts about a model that the cache, the planner and the kernels need.

A geometry is made once from a Hugging Face `config.json` (`latentkv.geometry.from_config`) by its fields, never by a
list of model names, and is frozen. Sizes keep the names they have in the config. Letters used for shapes everywhere:

    B sequences · T new tokens of the whole ragged batch · S context tokens · H query heads · P tokens in a page
    L kv_lora_rank (latent) · R qk_rope_head_dim · N qk_nope_head_dim · V v_head_dim · G KV heads · D head_dim
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.geometry_fields import Fields, language_model_fields, optional_size, required_size
from latentkv.geometry_refusals import refuse_unsupported


@dataclass(frozen=True, slots=True)
class MLAGeometry:
    """Multi-head Latent Attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): one latent and one RoPE key per token.

    `rope_groups` is 1 in every published model: each head's query sees the whole RoPE key. A model converted exactly
    from GQA has one group per former KV head: the RoPE key is `rope_groups` blocks side by side, and head h's query
    is zero outside block `h * rope_groups // num_attention_heads`, so only that block of it is stored and computed.
    """

    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    rope_groups: int = 1

    @property
    def kind(self) -> Literal["mla"]:
        """What is cached: one latent and one RoPE key per token."""
        return "mla"

    @property
    def row_elements(self) -> int:
        """Elements cached per token and layer: L + R."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def query_rope_dim(self) -> int:
        """RoPE elements that one query head really has: R / rope_groups."""
        return self.qk_rope_head_dim // self.rope_groups


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """Attention that caches keys and values per KV head: MHA, GQA or MQA by the number of KV heads."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def kind(self) -> Literal["mha", "gqa", "mqa"]:
        """The name that the number of KV heads gives it."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "mha"
        return "mqa" if self.num_key_value_heads == 1 else "gqa"

    @property
    def row_elements(self) -> int:
        """Elements cached per token and layer: G * (D + V)."""
        return self.num_key_value_heads * (self.head_dim + self.v_head_dim)


Geometry = MLAGeometry | AttentionGeometry

# Only these code bases say what an absent v_head_dim means: MiniCPM's own fields (muP scaling) mark its configuration
# class, which sets it to hidden_size / num_attention_heads. Anywhere else an absent v_head_dim is an error.
VALUE_DIM_FROM_HIDDEN_MARKS = ("scale_depth", "dim_model_base")
# LongCat's shortcut-connected MoE: each of `num_layers` blocks holds two attention sublayers, each with its own cache.
TWO_ATTENTIONS_PER_LAYER_MARKS = ("zero_expert_num", "expert_ffn_hidden_size")
MLA_FIELDS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def from_config(config: Mapping[str, object]) -> Geometry:
    """The geometry of the model that a Hugging Face `config.json` describes, decided by fields alone.

    With `kv_lora_rank` it is MLA, and `qk_rope_head_dim`, `qk_nope_head_dim` and `v_head_dim` are needed. Without, it
    is attention with `num_key_value_heads` (absent: as many as query heads) of `head_dim` (absent: hidden size over
    heads). A multimodal model is read from its `text_config`. Null means absent.

    Raises ConfigError when a field is missing or contradicts another; UnsupportedModelError, with the reason, for
    attention that is recognised but cannot be described by one row per token and layer.
    """
    fields = language_model_fields(config)
    if fields.get("use_mla") is False:
        fields = {name: value for name, value in fields.items() if name not in MLA_FIELDS}
    refuse_unsupported(fields)
    if optional_size(fields, "kv_lora_rank") is not None:
        return _mla(fields)
    if optional_size(fields, "qk_nope_head_dim", minimum=0) is not None:
        required_size(fields, "kv_lora_rank", why="qk_nope_head_dim says that this is multi-head latent attention")
    return _attention(fields)


def _mla(fields: Fields) -> MLAGeometry:
    why = "kv_lora_rank says that this is multi-head latent attention"
    geometry = MLAGeometry(
        num_hidden_layers=_attention_layers(fields),
        num_attention_heads=required_size(fields, "num_attention_heads", why="the number of query heads"),
        kv_lora_rank=required_size(fields, "kv_lora_rank", why=why),
        qk_rope_head_dim=required_size(fields, "qk_rope_head_dim", why=why, minimum=0),
        qk_nope_head_dim=required_size(fields, "qk_nope_head_dim", why=why, minimum=0),
        v_head_dim=_mla_value_dim(fields, why),
        q_lora_rank=optional_size(fields, "q_lora_rank"),
        rope_groups=optional_size(fields, "rope_groups") or 1,
    )
    _check_mla(geometry, optional_size(fields, "qk_head_dim"))
    return geometry


def _check_mla(geometry: MLAGeometry, qk_head_dim: int | None) -> None:
    groups, rope, heads = geometry.rope_groups, geometry.qk_rope_head_dim, geometry.num_attention_heads
    if rope % groups or heads % groups:
        raise ConfigError(
            sentence(
                "config field rope_groups",
                expected=f"a divisor of qk_rope_head_dim ({rope}) and of num_attention_heads ({heads})",
                got=groups,
            )
        )
    if geometry.query_rope_dim % 2:
        raise ConfigError(sentence("config field qk_rope_head_dim", expected="pairs to rotate", got=f"{rope} (odd)"))
    width = geometry.qk_nope_head_dim + geometry.query_rope_dim
    if width == 0 or qk_head_dim not in (None, width):
        raise ConfigError(
            sentence("qk_nope_head_dim + qk_rope_head_dim", expected=qk_head_dim or "a width above 0", got=width)
        )


def _mla_value_dim(fields: Fields, why: str) -> int:
    if optional_size(fields, "v_head_dim") is None and all(name in fields for name in VALUE_DIM_FROM_HIDDEN_MARKS):
        return _hidden_per_head(fields, "v_head_dim")
    return required_size(fields, "v_head_dim", why=why)


def _attention_layers(fields: Fields) -> int:
    """Layers that keep a cache. `num_layers` alone is ambiguous: it may count blocks of two attention sublayers."""
    stated, blocks = optional_size(fields, "num_hidden_layers"), optional_size(fields, "num_layers")
    if blocks is not None and any(name in fields for name in TWO_ATTENTIONS_PER_LAYER_MARKS):
        if stated not in (None, 2 * blocks):
            raise ConfigError(
                sentence("config field num_hidden_layers", expected=f"2 x num_layers = {2 * blocks}", got=stated)
            )
        return 2 * blocks
    if stated is None and blocks is not None and optional_size(fields, "kv_lora_rank") is not None:
        raise UnsupportedModelError(
            f"num_layers = {blocks} without num_hidden_layers: in models with latent attention it may count blocks of "
            "two attention sublayers each, and nothing here says which; state num_hidden_layers."
        )
    return stated or blocks or required_size(fields, "num_hidden_layers", why="the number of attention layers")


def _attention(fields: Fields) -> AttentionGeometry:
    layers = _attention_layers(fields)
    heads = required_size(fields, "num_attention_heads", why="the number of query heads")
    kv_heads = _key_value_heads(fields, heads)
    if heads % kv_heads:
        raise ConfigError(
            sentence(
                "config field num_key_value_heads", expected=f"a divisor of num_attention_heads ({heads})", got=kv_heads
            )
        )
    head_dim = optional_size(fields, "head_dim") or _hidden_per_head(fields, "head_dim")
    if head_dim % 2:
        raise ConfigError(sentence("config field head_dim", expected="pairs to rotate", got=f"{head_dim} (odd)"))
    return AttentionGeometry(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=optional_size(fields, "v_head_dim") or head_dim,
    )


def _key_value_heads(fields: Fields, heads: int) -> int:
    """Falcon and GPTBigCode say `multi_query` and may still carry a `num_kv_heads` that their code does not use."""
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1
    if fields.get("multi_query_attention"):
        return required_size(fields, "multi_query_group_num", why="multi_query_attention is set")
    return optional_size(fields, "num_key_value_heads") or heads


def _hidden_per_head(fields: Fields, name: str) -> int:
    why = f"{name} is absent and is then hidden_size / num_attention_heads"
    hidden = required_size(fields, "hidden_size", why=why)
    heads = required_size(fields, "num_attention_heads", why=why)
    if hidden % heads:
        raise ConfigError(
            sentence(
                "config field hidden_size",
                expected=f"a multiple of num_attention_heads ({heads}), since {why}",
                got=hidden,
            )
        )
    return hidden // heads
