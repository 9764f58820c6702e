"""RoPE frequencies from a configuration: plain, linear, YaRN, llama3 and LongRoPE scaling, and given ones.

Also the softmax scale, since YaRN changes it: this is what each new MLA code base gets wrong once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.ops.rope import Rope

DEFAULT_THETA = 10000.0


def rope_from_config(config: Mapping[str, Any], *, dim: int, interleaved: bool) -> Rope:
    """The rotation of `dim` dimensions that a Hugging Face configuration describes.

    Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (earlier), and `rope_frequencies`, a
    list of dim/2 inverse frequencies that overrides both. Raises ConfigError for a missing or impossible field and
    UnsupportedModelError for a kind of scaling that is not known.
    """
    if dim % 2:
        raise ConfigError(sentence("RoPE dimensions", expected="an even number", got=dim))
    given = config.get("rope_frequencies")
    if given is not None:
        if len(given) != dim // 2:
            raise ConfigError(sentence("rope_frequencies", expected=f"{dim // 2} numbers", got=len(given)))
        magnitude = float(config.get("rope_magnitude", 1.0))
        return Rope(torch.tensor(given, dtype=torch.float64), interleaved, magnitude)
    parameters = rope_parameters(config)
    plain = _plain(float(parameters["rope_theta"]), dim)
    kind = rope_kind(parameters)
    if kind not in SCALINGS:
        raise UnsupportedModelError(sentence("rope type", expected=f"one of {', '.join(SCALINGS)}", got=repr(kind)))
    frequencies, magnitude = SCALINGS[kind](plain, parameters, config)
    return Rope(frequencies, interleaved, magnitude)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The RoPE fields of a configuration in one dict, whichever of the two spellings it uses."""
    parameters: dict[str, Any] = {"rope_theta": config.get("rope_theta", DEFAULT_THETA)}
    parameters |= config.get("rope_scaling") or {}
    parameters |= config.get("rope_parameters") or {}
    if "original_max_position_embeddings" in config:
        parameters.setdefault("original_max_position_embeddings", config["original_max_position_embeddings"])
    return parameters


def rope_kind(parameters: Mapping[str, Any]) -> str:
    """The kind of scaling; early configurations call the field `type`, and Kimi's `rope_type` is absent or null."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    return {"deepseek_yarn": "yarn", "su": "longrope"}.get(kind, str(kind))


def softmax_scale(config: Mapping[str, Any], *, query_dim: int) -> float:
    """`query_dim ** -0.5`, times YaRN's mscale² where the configuration has `mscale_all_dim` (DeepSeek-V2's own rule).

    query_dim is N + R for MLA. Cosine and sine carry another factor, `Rope.magnitude`, which is 1 when `mscale`
    equals `mscale_all_dim`.
    """
    scale = 1 / math.sqrt(query_dim)
    parameters = rope_parameters(config)
    if rope_kind(parameters) == "default" or not parameters.get("mscale_all_dim"):
        return scale
    return scale * _yarn_mscale(_number(parameters, "factor"), float(parameters["mscale_all_dim"])) ** 2


def _plain(theta: float, dim: int) -> Tensor:
    return torch.pow(theta, -torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def _unscaled(plain: Tensor, parameters: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    del parameters, config
    return plain, 1.0


def _linear(plain: Tensor, parameters: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    del config
    return plain / _number(parameters, "factor"), 1.0


def _yarn(plain: Tensor, parameters: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """YaRN (Peng et al., arXiv:2309.00071, equations 18 to 22): slow pairs interpolated, fast ones kept."""
    original = _number(parameters, "original_max_position_embeddings")
    factor = parameters.get("factor") or _number(config, "max_position_embeddings") / original
    theta = float(parameters["rope_theta"])
    pairs = plain.numel()

    def pair_turning(times: float) -> float:
        """The (fractional) pair that turns `times` over the original context."""
        return pairs * math.log(original / (times * 2 * math.pi)) / math.log(theta)

    low = pair_turning(float(parameters.get("beta_fast") or 32))
    high = pair_turning(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = ((torch.arange(pairs, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / factor * ramp, _yarn_magnitude(float(factor), parameters)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_magnitude(factor: float, parameters: Mapping[str, Any]) -> float:
    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return _yarn_mscale(factor, float(mscale)) / _yarn_mscale(factor, float(all_dim))
    return _yarn_mscale(factor, 1.0)


def _llama3(plain: Tensor, parameters: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Llama 3.1: slow pairs divided by the factor, fast ones kept, a linear blend (in turns per context) between."""
    del config
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    turns = _number(parameters, "original_max_position_embeddings") * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * keep + plain / factor * (1 - keep), 1.0


def _longrope(plain: Tensor, parameters: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al., arXiv:2402.13753): one factor per pair, the long ones when the context was extended.

    The choice is made once per model, not per sequence: keys already cached cannot be rotated anew.
    """
    original = _number(parameters, "original_max_position_embeddings")
    longest = _number(config, "max_position_embeddings")
    name = "long_factor" if longest > original else "short_factor"
    factors = torch.tensor(parameters.get(name) or [], dtype=torch.float64)
    if factors.numel() != plain.numel():
        raise ConfigError(sentence(f"rope {name}", expected=f"{plain.numel()} numbers", got=factors.numel()))
    given = parameters.get("attention_factor")
    growth = float(parameters.get("factor") or longest / original)
    grown = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
    return plain / factors, float(given) if given is not None else grown


SCALINGS = {"default": _unscaled, "linear": _linear, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigError(sentence(f"RoPE field {name!r}", expected="a positive number", got=repr(value)))
    return float(value)
