"""What a machine allows at best: operations, bytes and the bound of attention and weights, for MLA and its twins.

A step computes q new tokens (`queries`) of each of b sequences, S tokens visible to the last one; `pairs` of them see
each other: p = b (q S - q (q - 1) / 2) under the causal mask. Per layer, H heads, counting a multiply-add as two:

    MLA, latent form   2 H (2L + R) p                                      arXiv:2405.04434, section 2.1.2 (W_UK, W_UV
                                                                           absorbed) and equations 41 to 47
    MLA, head form     2 H (N + R + V) p + 2 H L (N + V) b S               the same equations, keys and values expanded
    MHA, GQA, MQA      2 H (D + V) p                                       arXiv:2305.13245, section 2
    cache bytes        row_bytes b S, every row read once                  cache/layout.py
    weights            2 x active parameters x b q                         arXiv:2001.08361, table 1
    weight bytes       the parameters that the step touches, once          see `touched_parameters`

Time is operations over the rate or bytes over the bandwidth, whichever is longer (Williams, Waterman, Patterson, 2009,
doi:10.1145/1498765.1498785), attention and weights one after the other. It is a ceiling: nothing else is counted.
Projections, absorption included, are in the weights; expansion's bytes stay on the chip. Knows no kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from latentkv.errors import ConfigError, OptionError, UnsupportedModelError, sentence
from latentkv.geometry import AttentionGeometry, Geometry, MLAGeometry
from latentkv.geometry_fields import optional_size
from latentkv.planner.devices import Device
from latentkv.planner.footprint import row_bytes
from latentkv.planner.layers import attention_name
from latentkv.planner.model import Model
from latentkv.planner.twins import twins
from latentkv.planner.weights import weight_bytes

Form = Literal["latent", "head"]
Bound = Literal["memory", "arithmetic", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one step computes: `queries` new tokens of each of `batch` sequences with `context_tokens` visible."""

    batch: int = 1
    context_tokens: int = 4096
    queries: int = 1

    def __post_init__(self) -> None:
        for name, number in (("batch", self.batch), ("queries", self.queries)):
            if number < 1:
                raise OptionError(sentence(name, expected="1 or more", got=number))
        if self.context_tokens < self.queries:
            expected = f"at least the step's new tokens ({self.queries})"
            raise OptionError(sentence("context", expected=expected, got=self.context_tokens))

    @property
    def tokens(self) -> int:
        """New tokens in all."""
        return self.batch * self.queries

    @property
    def pairs(self) -> int:
        """New tokens times the tokens that each sees."""
        return self.batch * (self.queries * self.context_tokens - self.queries * (self.queries - 1) // 2)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and bytes, and what a device makes of them."""

    flops: float
    read_bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.read_bytes

    def seconds(self, device: Device, precision: str) -> float:
        """The least time; the memory's alone where the rate is not published."""
        rate = device.rate(precision)
        return max(self.flops / rate if rate else 0.0, self.read_bytes / device.bandwidth_bytes_s)

    def bound(self, device: Device, precision: str) -> Bound:
        """What takes that time."""
        ridge = device.ridge(precision)
        if ridge is None:
            return "unknown"
        return "arithmetic" if self.intensity > ridge else "memory"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One way to attend on one device: the work of a step, its bounds, and the tokens per second that they allow."""

    name: str
    attention: Work
    attention_bound: Bound
    weights: Work | None
    weights_bound: Bound | None
    seconds: float
    tokens_per_second: float


def attention_work(geometry: Geometry, load: Load, *, format: str = "bf16", form: Form = "latent") -> Work:
    """Attention of one step over all layers. `form` is MLA's; others have one only."""
    heads, layers = geometry.num_attention_heads, geometry.num_hidden_layers
    expanded = 0
    if isinstance(geometry, AttentionGeometry):
        width = geometry.head_dim + geometry.v_head_dim
    elif form == "latent":
        scored = geometry.kv_lora_rank if geometry.qk_nope_head_dim else 0
        width = scored + geometry.query_rope_dim + geometry.kv_lora_rank
    else:
        width = geometry.qk_nope_head_dim + geometry.query_rope_dim + geometry.v_head_dim
        expanded = geometry.kv_lora_rank * (geometry.qk_nope_head_dim + geometry.v_head_dim)
    rows = load.batch * load.context_tokens
    flops = 2.0 * heads * layers * (width * load.pairs + expanded * rows)
    return Work(flops, float(layers * rows * row_bytes(geometry, format).total))


def weights_work(model: Model, load: Load, *, weights: str = "bf16") -> Work:
    """The linear maps of one step; `weights` as weights.py's `weight_bytes` takes them, which says what it raises."""
    if model.params_total is None or model.params_active is None:
        raise ConfigError(f"{model.name}: the number of parameters is not known, so weights cannot be counted.")
    looked_up = _looked_up_parameters(model)
    touched = touched_parameters(model, load.tokens) - looked_up
    flops = 2.0 * (model.params_active - looked_up) * load.tokens
    return Work(flops, touched * weight_bytes(model, weights) / model.params_total)


def touched_parameters(model: Model, tokens: int) -> float:
    """Parameters that `tokens` tokens use together: all but the experts that none of them is routed to.

    With k of E experts chosen evenly and independently, an expert is left out with probability (1 - k / E)**tokens.
    Real routing is less even, so it touches fewer.
    """
    if model.params_total is None or model.params_active is None:
        raise ConfigError(f"{model.name}: the number of parameters is not known, so weights cannot be counted.")
    experts, chosen = _expert_counts(model)
    if not experts or not chosen or chosen >= experts:
        return float(model.params_total)
    left_out = 1 - chosen / experts
    routed = (model.params_total - model.params_active) / left_out
    return model.params_total - routed * left_out**tokens


def ceilings(
    model: Model,
    device: Device,
    load: Load,
    *,
    format: str = "bf16",
    weights: str | None = "bf16",
    precision: str | None = None,
) -> tuple[Ceiling, ...]:
    """The model's own attention first (MLA in latent, then in head form), then MHA, GQA-8 and MQA of the same heads.

    weights: their format, or None to leave them out; the twins are given the model's own weights
    precision: of attention and weights; the device's default otherwise
    Raises UnsupportedModelError for a model whose layers differ.
    """
    if not model.uniform:
        raise UnsupportedModelError(
            f"{model.name}: its layers do not all attend alike, and the roofline counts one attention for all."
        )
    precision = precision or device.default_precision
    linear = weights_work(model, load, weights=weights) if weights is not None else None
    return tuple(
        _ceiling(name, attention_work(geometry, load, format=format, form=form), linear, device, load, precision)
        for name, geometry, form in _ways(model.geometry)
    )


def crossing_queries(
    geometry: Geometry, twin: AttentionGeometry, device: Device, *, format: str, precision: str
) -> float:
    """From how many new tokens per sequence and step on the twin attends faster than MLA in latent form.

    1 means always, inf never. Each costs max(q a / F, r / B) per cached token: a operations, r bytes, F and B the
    device's rates. The larger cache costs a constant time until arithmetic, which grows with q, exceeds it.
    """
    one = Load(context_tokens=1 << 20)
    mla, other = attention_work(geometry, one, format=format), attention_work(twin, one, format=format)
    rate = device.rate(precision)
    if other.seconds(device, precision) < mla.seconds(device, precision):
        return 1
    if rate is None or other.flops >= mla.flops:
        return inf
    return max(1.0, other.read_bytes / device.bandwidth_bytes_s * rate / mla.flops)


def arithmetic_ratio(geometry: MLAGeometry) -> float:
    """Operations per head and pair of the latent form over those of plain attention of the same heads."""
    one = Load(context_tokens=1)
    mha = twins(replace(geometry, rope_groups=1))[0]
    return attention_work(geometry, one).flops / attention_work(mha, one).flops


def _ways(geometry: Geometry) -> tuple[tuple[str, Geometry, Form], ...]:
    own: tuple[tuple[str, Geometry, Form], ...] = ((attention_name(geometry), geometry, "latent"),)
    if isinstance(geometry, MLAGeometry):
        own = (("MLA, latent form", geometry, "latent"), ("MLA, head form", geometry, "head"))
    others: tuple[tuple[str, Geometry, Form], ...] = tuple(
        (attention_name(twin), twin, "latent") for twin in twins(geometry)
    )
    return own + others


def _ceiling(name: str, attention: Work, linear: Work | None, device: Device, load: Load, precision: str) -> Ceiling:
    seconds = attention.seconds(device, precision) + (linear.seconds(device, precision) if linear else 0.0)
    return Ceiling(
        name=name,
        attention=attention,
        attention_bound=attention.bound(device, precision),
        weights=linear,
        weights_bound=linear.bound(device, precision) if linear else None,
        seconds=seconds,
        tokens_per_second=load.tokens / seconds,
    )


def _looked_up_parameters(model: Model) -> int:
    """The embedding, of which a token needs one row; a tied one is the output's matrix too, and is multiplied."""
    vocabulary, hidden = optional_size(model.fields, "vocab_size"), model.hidden_size
    if vocabulary is None or hidden is None or model.fields.get("tie_word_embeddings") is not False:
        return 0
    return vocabulary * hidden


def _expert_counts(model: Model) -> tuple[int, int]:
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    experts = next((size for name in names if (size := optional_size(model.fields, name))), 0)
    return experts, optional_size(model.fields, "num_experts_per_tok") or 0
