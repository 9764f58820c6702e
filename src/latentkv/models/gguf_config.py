"""A Hugging Face style configuration from the metadata of a GGUF file. It reads no weights but RoPE factors.

The result has the fields of the model's original `config.json`, plus `rope_interleave`: true where the file's rows are
laid out for RoPE on neighbouring pairs (llama, deepseek2), false for the two halves (qwen2, qwen3, minicpm3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.models.weights.gguf_file import GGUFFile
from latentkv.models.weights.gguf_source import check_architecture
from latentkv.models.weights.mapping import view

_INTERLEAVED = {"llama": True, "deepseek2": True, "qwen2": False, "qwen3": False, "minicpm3": False}
_SOFTMAX, _SIGMOID = 1, 2

# Texts that end a turn; a file names one of them as its end token and often leaves out the others.
_END_TEXTS = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "[EOS]"}
)
_CONTROL_TOKEN = 3


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """The configuration of the model in `file`.

    Raises UnsupportedModelError for an architecture or variant that is not supported, ConfigError for metadata that is
    missing or contradicts itself.
    """
    architecture = check_architecture(file)
    facts = _Facts(file, architecture)
    config = _common(facts)
    config |= _ATTENTION[architecture](facts, config)
    config["rope_interleave"] = _INTERLEAVED[architecture]
    scaling = _rope_scaling(facts, config)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def end_token_ids(file: GGUFFile) -> tuple[int, ...]:
    """Ids that end a generation: those the file names, and its control tokens with a well-known end text."""
    named = (file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    pairs = zip(tokens, types, strict=False) if isinstance(tokens, list) and isinstance(types, list) else ()
    known = (i for i, (text, kind) in enumerate(pairs) if kind == _CONTROL_TOKEN and text in _END_TEXTS)
    return tuple(dict.fromkeys(i for i in (*named, *known) if type(i) is int))


@dataclass(frozen=True, slots=True)
class _Facts:
    """Typed access to the metadata under the architecture's prefix."""

    file: GGUFFile
    architecture: str

    def optional(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds:
            got = f"a list of {len(value)} (layers that differ)" if isinstance(value, list) else repr(value)
            raise ConfigError(sentence(self._where(key), expected=f"one {kinds[0].__name__}", got=got))
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A non-negative integer; an absent one without a default is a ConfigError."""
        value = self.optional(key, int)
        if value is None:
            value = default
        if value is None or value < 0:
            got = "nothing" if value is None else str(value)
            raise ConfigError(sentence(self._where(key), expected="a non-negative integer", got=got))
        return int(value)

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.integer(key, default)
        if value == 0:
            raise ConfigError(sentence(self._where(key), expected="a positive integer", got="0"))
        return value

    def number(self, key: str, default: float) -> float:
        value = self.optional(key, (float, int))
        return default if value is None else float(value)

    def _where(self, key: str) -> str:
        return f"{self.file.path}: {self.architecture}.{key}"


def _common(facts: _Facts) -> dict[str, Any]:
    metadata, tensors = facts.file.metadata, facts.file.tensors
    heads = facts.positive("attention.head_count")
    layers = facts.positive("block_count") - facts.integer("nextn_predict_layers", 0)
    if layers <= 0:
        raise ConfigError(sentence(str(facts.file.path), expected="at least one layer", got=str(layers)))
    tokens = metadata.get("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": facts.positive("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": facts.positive("attention.head_count_kv", heads),
        "intermediate_size": facts.positive("feed_forward_length"),
        "max_position_embeddings": facts.positive("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": facts.number("rope.freq_base", 10000.0),
        "vocab_size": facts.positive("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    ends = end_token_ids(facts.file)
    config["eos_token_id"] = list(ends) if len(ends) > 1 else (ends[0] if ends else None)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    config["bos_token_id"] = bos if type(bos) is int else None
    return config


def _grouped(facts: _Facts, config: dict[str, Any]) -> dict[str, Any]:
    """Llama, Qwen2 and Qwen3."""
    if facts.integer("expert_count", 0):
        raise UnsupportedModelError(
            sentence(str(facts.file.path), expected=f"a dense {facts.architecture} model", got="mixture of experts")
        )
    if config["hidden_size"] % config["num_attention_heads"] and facts.optional("attention.key_length", int) is None:
        expected = f"a multiple of {config['num_attention_heads']} heads or attention.key_length"
        raise ConfigError(sentence(f"{facts.file.path}: hidden size", expected=expected, got=config["hidden_size"]))
    head_dim = facts.positive("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    rotated = facts.integer("rope.dimension_count", head_dim)
    value_dim = facts.positive("attention.value_length", head_dim)
    if value_dim != head_dim or rotated > head_dim:
        expected = f"values of {head_dim} and at most as many rotated dimensions"
        raise ConfigError(sentence(str(facts.file.path), expected=expected, got=f"{value_dim} and {rotated}"))
    fields: dict[str, Any] = {
        "model_type": facts.architecture,
        "head_dim": head_dim,
        "qkv_bias": "blk.0.attn_q.bias" in facts.file.tensors,
        "output_bias": "blk.0.attn_output.bias" in facts.file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in facts.file.tensors,
    }
    if rotated != head_dim:
        fields["partial_rotary_factor"] = rotated / head_dim
    return fields


def _latent(facts: _Facts, config: dict[str, Any]) -> dict[str, Any]:
    """The MLA fields that DeepSeek and MiniCPM3 share. Head sizes may be stored per head or of the latent form."""
    rope = facts.positive("rope.dimension_count")
    per_head = facts.optional("attention.key_length_mla", int)
    key = per_head if per_head is not None else facts.positive("attention.key_length")
    if key < rope:
        expected = f"at least rope.dimension_count = {rope}"
        raise ConfigError(sentence(f"{facts.file.path}: attention key length", expected=expected, got=key))
    heads = config["num_attention_heads"]
    value = facts.optional("attention.value_length_mla", int)
    if value is None:
        value = facts.positive("attention.value_length", config["hidden_size"] // heads)
    return {
        "kv_lora_rank": facts.positive("attention.kv_lora_rank"),
        "q_lora_rank": facts.optional("attention.q_lora_rank", int) or None,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        # The latent form is stored as one KV head; the configuration counts the heads that it stands for.
        "num_key_value_heads": heads,
        "attention_bias": False,
    }


def _deepseek2(facts: _Facts, config: dict[str, Any]) -> dict[str, Any]:
    if facts.number("attention.temperature_scale", 0.0):
        raise UnsupportedModelError(
            sentence(str(facts.file.path), expected="plain attention", got="attention temperature tuning")
        )
    fields = _latent(facts, config) | {"model_type": "deepseek_v2"}
    experts = facts.integer("expert_count", 0)
    if not experts:
        return fields | {"n_routed_experts": None, "first_k_dense_replace": config["num_hidden_layers"]}
    gating = facts.integer("expert_gating_func", _SOFTMAX) or _SOFTMAX
    if gating not in (_SOFTMAX, _SIGMOID):
        got = f"function {gating}"
        raise UnsupportedModelError(sentence(f"{facts.file.path}: expert gating", expected="softmax, sigmoid", got=got))
    groups = facts.positive("expert_group_count", 1)
    biased = any(name.endswith(".exp_probs_b.bias") for name in facts.file.tensors)
    unbiased_method = "group_limited_greedy" if groups > 1 else "greedy"
    return fields | {
        "model_type": "deepseek_v3" if gating == _SIGMOID else "deepseek_v2",
        "n_routed_experts": experts,
        "n_shared_experts": facts.integer("expert_shared_count", 0),
        "num_experts_per_tok": facts.positive("expert_used_count"),
        "moe_intermediate_size": facts.positive("expert_feed_forward_length"),
        "moe_layer_freq": 1,
        "first_k_dense_replace": facts.integer("leading_dense_block_count", 0),
        "n_group": groups,
        "topk_group": facts.positive("expert_group_used_count", 1),
        "norm_topk_prob": bool(facts.optional("expert_weights_norm", bool)),
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
        "scoring_func": "sigmoid" if gating == _SIGMOID else "softmax",
        "topk_method": "noaux_tc" if biased or gating == _SIGMOID else unbiased_method,
    }


def _minicpm3(facts: _Facts, config: dict[str, Any]) -> dict[str, Any]:
    # The three scales are the published model's: GGUF has no keys for them.
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    return _latent(facts, config) | scales | {"model_type": "minicpm3"}


_ATTENTION: dict[str, Callable[[_Facts, dict[str, Any]], dict[str, Any]]] = {
    "llama": _grouped,
    "qwen2": _grouped,
    "qwen3": _grouped,
    "deepseek2": _deepseek2,
    "minicpm3": _minicpm3,
}


def _rope_scaling(facts: _Facts, config: dict[str, Any]) -> dict[str, Any] | None:
    context = config["max_position_embeddings"]
    original = facts.positive("rope.scaling.original_context_length", context)
    tensors = facts.file.tensors
    if "rope_freqs.weight" in tensors:
        # Llama 3's scaling is stored as finished divisors of the frequencies, the same at any length.
        divisors = _factors(facts, "rope_freqs.weight")
        return _longrope(short=divisors, long=divisors, original=context, attention_factor=1.0)
    if "rope_factors_long.weight" in tensors and "rope_factors_short.weight" in tensors:
        return _longrope(
            short=_factors(facts, "rope_factors_short.weight"),
            long=_factors(facts, "rope_factors_long.weight"),
            original=original,
            attention_factor=facts.number("rope.scaling.attn_factor", 1.0),
        )
    kind = facts.optional("rope.scaling.type", str) or "none"
    factor = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 1.0))
    if kind == "yarn":
        return _yarn(facts, factor=factor, original=original)
    if kind in ("none", "linear"):
        return {"rope_type": "linear", "factor": factor} if factor not in (0.0, 1.0) else None
    raise UnsupportedModelError(
        sentence(f"{facts.file.path}: RoPE scaling", expected="none, linear or yarn", got=repr(kind))
    )


def _yarn(facts: _Facts, *, factor: float, original: int) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": facts.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": facts.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    attention = facts.optional("rope.scaling.attn_factor", float)
    if attention is not None:
        scaling["attention_factor"] = attention
    if facts.architecture == "deepseek2":
        # Stored as 0.1 * mscale_all_dim; files hold no mscale, their writer takes both to be equal.
        multiplier = round(10.0 * facts.number("rope.scaling.yarn_log_multiplier", 0.0), 6)
        equal = {"mscale": multiplier, "mscale_all_dim": multiplier}
        scaling |= equal if multiplier else {"attention_factor": 1.0}
    return scaling


def _longrope(*, short: list[float], long: list[float], original: int, attention_factor: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention_factor,
    }


def _factors(facts: _Facts, name: str) -> list[float]:
    tensor = facts.file.tensors[name]
    if tensor.kind.name != "F32" or len(tensor.shape) != 1:
        got = f"{tensor.kind.name} {list(tensor.shape)}"
        raise ConfigError(sentence(f"{facts.file.path}: {name}", expected="a float32 vector", got=got))
    values = view(facts.file.buffer, offset_bytes=tensor.offset_bytes, shape=tensor.shape, dtype=torch.float32)
    return [float(value) for value in values]
