"""Which layers of a model cache what: the configuration read layer by layer, hybrids included, or refused.

`latentkv.geometry` describes models that latentkv can run, in which every layer caches the same. A plan must also be
right for models that it cannot run: with sliding windows, linear attention, indexer keys (DSA), or layers that reuse
another layer's cache. What is neither understood here nor there is refused with the reason. Knows no bytes but those
of a linear layer's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.geometry import Geometry, from_config
from latentkv.geometry_fields import Fields, language_model_fields, optional_size
from latentkv.geometry_refusals import PLAIN_LAYERS, SINKS, SWITCHES
from latentkv.planner.schedule import LINEAR, SCHEDULE_FIELDS, WINDOW, indexed_layers, layer_kinds, stored_layers

INDEX_FIELDS = ("index_topk", "index_n_heads", "index_head_dim")
SHARING_FIELDS = ("num_kv_shared_layers", "use_cla")
UNEVEN_FIELDS = (
    "swa_num_key_value_heads",
    "swa_num_attention_heads",
    "swa_head_dim",
    "global_head_dim",
    "num_global_key_value_heads",
)
SINK_FIELDS = next(names for meaning, names in SWITCHES if meaning == SINKS)
STATE_BYTES, CONVOLUTION_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class CachedLayers:
    """`count` layers that cache alike.

    `geometry` is their row (its num_hidden_layers is `count`), None for linear layers. `window_tokens` is the most
    tokens they keep, None for all. `index_elements` is the width of the indexer key cached beside the row.
    `state_bytes` is kept per sequence and layer whatever the context; None means that the configuration does not say.
    """

    count: int
    geometry: Geometry | None
    window_tokens: int | None = None
    index_elements: int = 0
    state_bytes: int | None = 0

    @property
    def name(self) -> str:
        """ "MLA", "GQA-8, window of 128", "linear": what the layers are called in tables."""
        if self.geometry is None:
            return "linear"
        extra = f", window of {self.window_tokens:,}" if self.window_tokens is not None else ""
        return attention_name(self.geometry) + extra + (" + indexer" if self.index_elements else "")


def attention_name(geometry: Geometry) -> str:
    """ "MLA", "GQA-3" (three KV heads), "MHA" or "MQA"."""
    if geometry.kind == "gqa":
        return f"GQA-{geometry.num_key_value_heads}"
    return geometry.kind.upper()


def cached_layers(config: Mapping[str, object]) -> tuple[CachedLayers, ...]:
    """What each layer of the model that a Hugging Face `config.json` describes caches; those alike in one group.

    Raises ConfigError for a missing or contradictory field; UnsupportedModelError for layers that cannot be counted.
    """
    fields = language_model_fields(config)
    _refuse_uneven(fields)
    _refuse_unknown_sparsity(fields)
    geometry = from_config(_without_hybrid_fields(fields))
    kinds = layer_kinds(fields, geometry.num_hidden_layers)[: stored_layers(fields, geometry.num_hidden_layers)]
    index_width = _index_width(fields)
    indexed = indexed_layers(fields, len(kinds)) if index_width else frozenset()
    counted = Counter((kind, layer in indexed) for layer, kind in enumerate(kinds))
    return tuple(
        _group(fields, geometry, kind, count, index_width if has_index else 0)
        for (kind, has_index), count in sorted(counted.items(), key=lambda item: (item[0][0], not item[0][1]))
    )


def _group(fields: Fields, geometry: Geometry, kind: str, count: int, index_elements: int) -> CachedLayers:
    if kind == LINEAR:
        return CachedLayers(count, None, state_bytes=_state_bytes(fields))
    window = _window(fields) if kind == WINDOW else None
    return CachedLayers(count, replace(geometry, num_hidden_layers=count), window, index_elements)


def _without_hybrid_fields(fields: Fields) -> dict[str, object]:
    """The fields as those of a model whose layers are all alike; whatever else is unusual stays, to be refused."""
    handled = {*SCHEDULE_FIELDS, *SHARING_FIELDS, *SINK_FIELDS}
    if fields.get("kv_lora_rank"):
        handled |= {*INDEX_FIELDS}
    plain = {name: value for name, value in fields.items() if name not in handled}
    kinds = fields.get("layer_types")
    if isinstance(kinds, list | tuple) and kinds:
        # Stated kinds overrule sizes of layers that the model does not have, such as Granite's Mamba sizes.
        plain["layer_types"] = [kind for kind in kinds if _unknown_kind(str(kind))] or ["full_attention"]
    return plain


def _unknown_kind(kind: str) -> bool:
    known = (*PLAIN_LAYERS, "indexed_attention", "linear_attention", "kda", "sliding_attention", "chunked_attention")
    return kind not in known


def _refuse_uneven(fields: Fields) -> None:
    for name in UNEVEN_FIELDS:
        if fields.get(name):
            raise UnsupportedModelError(
                f"{name} = {fields[name]}: heads differ from layer to layer, and the planner gives all attention "
                "layers of a model the same row."
            )


def _refuse_unknown_sparsity(fields: Fields) -> None:
    for name in INDEX_FIELDS:
        if fields.get(name) and not fields.get("kv_lora_rank"):
            raise UnsupportedModelError(
                f"{name} = {fields[name]} without kv_lora_rank: an indexer picks entries that are not the latents of "
                "MLA (in DeepSeek-V4 each stands for several tokens), and the configuration does not say which layer "
                "keeps how many."
            )


def _index_width(fields: Fields) -> int:
    """Elements of one indexer key (DeepSeek-V3.2, DeepSeek Sparse Attention): one shared by all indexer heads."""
    if not any(fields.get(name) for name in INDEX_FIELDS):
        return 0
    width = optional_size(fields, "index_head_dim")
    if width is None:
        raise ConfigError(
            sentence("config field index_head_dim", expected="a whole number (index_topk is set)", got="no such field")
        )
    if (optional_size(fields, "index_kpool") or 1) > 1:
        raise UnsupportedModelError(
            f"index_kpool = {fields['index_kpool']}: indexer keys are pooled over tokens, and what is cached for them "
            "differs from engine to engine; the planner does not guess it."
        )
    return width


def _window(fields: Fields) -> int:
    for name in ("sliding_window", "attention_chunk_size"):
        size = optional_size(fields, name)
        if size is not None:
            return size
    raise ConfigError(
        sentence(
            "config field sliding_window",
            expected="a whole number (layer_types says that some layers slide)",
            got="no such field",
        )
    )


def _state_bytes(fields: Fields) -> int | None:
    """A linear layer's state for one sequence: the recurrent matrices in float32, the convolution's tail in bf16.

    Kimi Delta Attention has `num_heads` square matrices of `head_dim`; Gated DeltaNet one of key by value width per
    value head. The short convolution keeps the last kernel - 1 inputs of queries, keys and values.
    """
    nested = fields.get("linear_attn_config")
    own = nested if isinstance(nested, Mapping) else {}
    kernel = own.get("short_conv_kernel_size", fields.get("linear_conv_kernel_dim"))
    heads = own.get("num_heads", fields.get("linear_num_heads", fields.get("linear_num_value_heads")))
    value_dim = own.get("head_dim", fields.get("linear_head_dim", fields.get("linear_value_head_dim")))
    key_heads = fields.get("linear_num_key_heads", heads)
    key_dim = fields.get("linear_key_head_dim", value_dim)
    sizes = [size for size in (kernel, heads, value_dim, key_heads, key_dim) if isinstance(size, int) and size > 0]
    if len(sizes) < 5:
        return None
    kernel, heads, value_dim, key_heads, key_dim = sizes
    recurrent = heads * key_dim * value_dim * STATE_BYTES
    return recurrent + (kernel - 1) * (2 * key_heads * key_dim + heads * value_dim) * CONVOLUTION_BYTES
