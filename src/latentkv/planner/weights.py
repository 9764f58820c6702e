"""Bytes of a model's weights by format, and which of them are attention's.

Estimates: every parameter is counted in the format asked for, where checkpoints often keep embeddings, norms and
routers wider. The stored size, where weight files are at hand, is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.errors import ConfigError, OptionError, sentence
from latentkv.geometry import AttentionGeometry, Geometry, MLAGeometry
from latentkv.planner.model import Model
from latentkv.planner.units import parse_bytes

STORED, NONE = "stored", "none"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Weights of `bits` bits; with `group`, each so many share a scale of `scale_bytes`."""

    name: str
    bits: int
    group: int = 0
    scale_bytes: int = 0

    def size_bytes(self, parameters: int) -> int:
        """Bytes of so many parameters, scales included."""
        scales = -(-parameters // self.group) * self.scale_bytes if self.group else 0
        return -(-parameters * self.bits // 8) + scales

    @property
    def explained(self) -> str:
        """ "8 bits, and 2 B of scale per 32"."""
        return f"{self.bits} bits" + (f", and {self.scale_bytes} B of scale per {self.group:,}" if self.group else "")


WEIGHT_FORMATS = {
    format.name: format
    for format in (
        WeightFormat("f32", 32),
        WeightFormat("bf16", 16),
        WeightFormat("f16", 16),
        # DeepSeek-V3's checkpoint: one float32 scale per tile of 128 x 128 (arXiv:2412.19437, section 3.3.2).
        WeightFormat("fp8", 8, 128 * 128, 4),
        # GGUF's Q8_0 and Q4_0: one float16 scale per 32.
        WeightFormat("int8", 8, 32, 2),
        WeightFormat("int4", 4, 32, 2),
    )
}


def weight_bytes(model: Model, weights: str) -> int:
    """Bytes of the model's weights: in a format, as its files are ("stored"), of a given size ("14GiB"), or "none".

    Raises OptionError for anything else; ConfigError when the number of parameters or the files are not known.
    """
    if weights == NONE:
        return 0
    if weights == STORED:
        if model.weights_bytes is None:
            raise ConfigError(f"{model.name}: no weight files are here, so their stored size is not known.")
        return model.weights_bytes
    if weights not in WEIGHT_FORMATS:
        return _stated_bytes(weights)
    if model.params_total is None:
        raise ConfigError(
            f"{model.name}: the number of parameters is not known; state the size of its weights, "
            'such as --weights 14GiB, or plan for the cache alone with "--weights none".'
        )
    return WEIGHT_FORMATS[weights].size_bytes(model.params_total)


def mla_parameters(hidden: int, geometry: MLAGeometry) -> int:
    """Parameters of one MLA layer's attention, norms of the latents included (arXiv:2405.04434, equations 37 to 47)."""
    heads, latent, rank = geometry.num_attention_heads, geometry.kv_lora_rank, geometry.q_lora_rank
    queries = heads * (geometry.qk_nope_head_dim + geometry.query_rope_dim)
    query = hidden * queries if rank is None else hidden * rank + rank + rank * queries
    down = hidden * (latent + geometry.qk_rope_head_dim) + latent
    up = latent * heads * (geometry.qk_nope_head_dim + geometry.v_head_dim)
    return query + down + up + heads * geometry.v_head_dim * hidden


def kv_parameters(hidden: int, geometry: AttentionGeometry) -> int:
    """Parameters of one MHA, GQA or MQA layer's projections, without biases and norms of queries and keys."""
    queries = geometry.num_attention_heads * geometry.head_dim
    output = geometry.num_attention_heads * geometry.v_head_dim * hidden
    return hidden * (queries + geometry.row_elements) + output


def attention_share(model: Model) -> float:
    """The part of the parameters that belongs to attention: what data-parallel attention replicates; 0 if unknown.

    Linear layers are counted as if they had the attention of the others.
    """
    if model.hidden_size is None or not model.params_total:
        return 0.0
    layers = sum(group.count for group in model.layers)
    return min(1.0, layers * _attention_parameters(model.hidden_size, model.geometry) / model.params_total)


def _attention_parameters(hidden: int, geometry: Geometry) -> int:
    if isinstance(geometry, MLAGeometry):
        return mla_parameters(hidden, geometry)
    return kv_parameters(hidden, geometry)


def _stated_bytes(text: str) -> int:
    try:
        return parse_bytes(text, name="weights")
    except OptionError as error:
        expected = f"{', '.join(WEIGHT_FORMATS)}, {STORED}, {NONE}, or a size such as 14GiB"
        raise OptionError(sentence("weights", expected=expected, got=repr(text))) from error
