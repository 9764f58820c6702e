"""How fast latentkv's native backend decodes: the measured ceilings of a machine times the shares its kernels reach.

    seconds per token = weights: bytes / (read rate x share of the weights' format)
                      + attention: the longer of FLOP / (fp32 rate x share) and bytes / (read rate x share)
                      + Python: seconds per layer x layers + seconds per step

The shares are those of kernels alone on shapes of their own (data/efficiency.json says which, and how they were
measured); no model whose speed is predicted had a part in them. Knows no kernels and measures nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentkv.errors import ConfigError
from latentkv.geometry import Geometry, MLAGeometry
from latentkv.planner.devices import Device, Source
from latentkv.planner.roofline import Load, attention_work

EFFICIENCY_FILE = Path(__file__).parent / "data" / "efficiency.json"


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What the native kernels reach of the ceilings, and what Python adds.

    weight_read:      share of the read rate by bits of a weight, for one row of input
    attention_flops:  share of the fp32 multiply-add rate by heads that share a key (or a block of its RoPE part): up
                      to half a vector of them the kernel sums across lanes (docs/attention.md)
    attention_read:   share of the read rate
    layer_seconds, step_seconds: Python and small kernels, for each layer and for each step
    """

    weight_read: Mapping[int, float]
    attention_flops: Mapping[int, float]
    attention_read: float
    layer_seconds: float
    step_seconds: float

    def weight_share(self, bits: float) -> float:
        """The share for weights of so many bits: that of the nearest width that was measured."""
        return self.weight_read[min(self.weight_read, key=lambda known: abs(known - bits))]

    def attention_share(self, heads: int) -> float:
        """The arithmetic's share for so many heads to a key: that of the most heads measured that are no more."""
        return self.attention_flops[max((known for known in self.attention_flops if known <= heads), default=1)]


@dataclass(frozen=True, slots=True)
class DecodeModel:
    """All that decoding speed depends on: attention, and the weights that one token reads.

    weight_bytes: the matrices of all layers and the output; an untied embedding is looked up, not read
    weight_bits:  of one weight, scales included
    """

    geometry: Geometry
    weight_bytes: float
    weight_bits: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of one decoded token, by what takes them."""

    weights_seconds: float
    attention_seconds: float
    python_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of one sequence."""
        return 1 / (self.weights_seconds + self.attention_seconds + self.python_seconds)


def predict_decode(
    model: DecodeModel,
    machine: Device,
    *,
    context_tokens: int,
    format: str = "bf16",
    efficiency: Efficiency | None = None,
) -> Prediction:
    """One sequence decoded at a context, attention in latent form where it is MLA.

    Raises ConfigError for a machine whose fp32 rate is not known.
    """
    shares, rate = efficiency or measured_efficiency(), machine.rate("fp32")
    if rate is None:
        raise ConfigError(f"{machine.name}: its fp32 rate is not known, and attention on a CPU is bound by it.")
    attention = attention_work(model.geometry, Load(context_tokens=context_tokens), format=format)
    return Prediction(
        weights_seconds=model.weight_bytes / (machine.bandwidth_bytes_s * shares.weight_share(model.weight_bits)),
        attention_seconds=max(
            attention.flops / (rate * shares.attention_share(_heads_per_key(model.geometry))),
            attention.read_bytes / (machine.bandwidth_bytes_s * shares.attention_read),
        ),
        python_seconds=model.geometry.num_hidden_layers * shares.layer_seconds + shares.step_seconds,
    )


def this_machine(name: str, *, gflops: float, read_gbs: float) -> Device:
    """The machine with these two ceilings, as a device."""
    return Device(
        name=name,
        kind="cpu",
        memory_bytes=None,
        bandwidth_bytes_s=read_gbs * 1e9,
        rates={"fp32": gflops * 1e9},
        source=Source("measured", "latentkv.backends.ceilings, in this process"),
    )


@functools.cache
def measured_efficiency() -> Efficiency:
    """The shares that were measured once, on the machine that data/efficiency.json names."""
    record = json.loads(EFFICIENCY_FILE.read_text("utf-8"))
    return Efficiency(
        weight_read={int(bits): share for bits, share in record["weight_read"].items()},
        attention_flops={int(heads): share for heads, share in record["attention_flops"].items()},
        attention_read=record["attention_read"],
        layer_seconds=record["layer_us"] / 1e6,
        step_seconds=record["step_us"] / 1e6,
    )


def _heads_per_key(geometry: Geometry) -> int:
    if isinstance(geometry, MLAGeometry):
        return geometry.num_attention_heads // geometry.rope_groups
    return geometry.num_attention_heads // geometry.num_key_value_heads
