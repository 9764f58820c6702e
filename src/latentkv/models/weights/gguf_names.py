"""Which Hugging Face tensor each GGUF tensor is. It knows names only, no shapes and no data."""

from __future__ import annotations

import re

SUPPORTED_ARCHITECTURES = ("llama", "qwen2", "qwen3", "deepseek2", "minicpm3")

# Frequencies, not weights: they become part of the configuration.
ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_EXPERTS = {
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}
_LAYER_NAME = re.compile(r"^blk\.(\d+)\.(.+?)(\.weight|\.bias)?$")


def plain_name(name: str) -> str:
    """The Hugging Face name of a tensor stored as it is; a name that is not known stays what it is.

    Unknown names thus end up in the loader's list of tensors that are not part of the model.
    """
    stem, dot, suffix = name.rpartition(".")
    if stem in _GLOBAL:
        return f"{_GLOBAL[stem]}{dot}{suffix}"
    match = _LAYER_NAME.match(name)
    if match is None:
        return name
    layer, part, ending = match.groups()
    if part == "exp_probs_b":
        return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
    if part.startswith("nextn."):
        return f"model.layers.{layer}.{part.removeprefix('nextn.')}{ending or ''}"
    return f"model.layers.{layer}.{_LAYER[part]}{ending or ''}" if part in _LAYER else name


def expert_parts(name: str) -> tuple[str, tuple[str, ...]] | None:
    """For a tensor that stacks all experts: the experts' prefix and the matrices stacked in each of them."""
    match = _LAYER_NAME.match(name)
    if match is None or match.group(2) not in _EXPERTS or match.group(3) != ".weight":
        return None
    return f"model.layers.{match.group(1)}.mlp.experts", _EXPERTS[match.group(2)]


def split_kv_b(name: str) -> tuple[str, str, str] | None:
    """For `attn_k_b`: its own name, the name of its `attn_v_b`, and the Hugging Face name of the whole."""
    match = _LAYER_NAME.match(name)
    if match is None or match.group(2) != "attn_k_b":
        return None
    layer = match.group(1)
    return name, f"blk.{layer}.attn_v_b.weight", f"model.layers.{layer}.self_attn.kv_b_proj.weight"
