"""A model converted to GGUF the way llama.cpp does it has the logits of the original in transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from latentkv.models.config import ModelConfig
from latentkv.models.gguf_config import config_from_gguf
from latentkv.models.model import Model
from latentkv.models.weights import GGUFFile, GGUFSource, SafetensorsSource
from support.compare import assert_close
from support.paged import Sequences
from support.tiny_gguf import from_hf, write_gguf
from support.tiny_models import FAMILIES, VOCAB, Family, save_model

BY_NAME = {family.name: family for family in FAMILIES}
ARCHITECTURES = {
    "deepseek-v2 dense": "deepseek2",
    "deepseek-v2-lite (moe greedy, yarn mscale = mscale_all_dim)": "deepseek2",
    "deepseek-v2 (moe group-limited, yarn)": "deepseek2",
    "deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)": "deepseek2",
    "glm-4.7-flash": "deepseek2",
    "minicpm3": "minicpm3",
    "llama (gqa, llama3 rope)": "llama",
    "llama (mha, bias)": "llama",
    "qwen2 (yarn)": "qwen2",
    "qwen3": "qwen3",
}


def metadata(config: Any) -> dict[str, Any]:
    """GGUF keys of a transformers configuration; those without a value are left out."""
    get = lambda name: getattr(config, name, None)  # noqa: E731
    rope = config.rope_parameters
    fields = {
        "block_count": get("num_hidden_layers"),
        "context_length": get("max_position_embeddings"),
        "embedding_length": get("hidden_size"),
        "feed_forward_length": get("intermediate_size"),
        "attention.head_count": get("num_attention_heads"),
        "attention.head_count_kv": get("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": get("rms_norm_eps"),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": get("vocab_size"),
    }
    if rope["rope_type"] == "yarn":
        fields |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"] if "mscale_all_dim" in rope else None,
        }
    fields |= latent_metadata(config) if get("kv_lora_rank") else {"attention.key_length": get("head_dim")}
    fields["attention.value_length"] = fields.get("attention.value_length", get("head_dim"))
    return {key: value for key, value in fields.items() if value is not None}


def latent_metadata(config: Any) -> dict[str, Any]:
    get = lambda name: getattr(config, name, None)  # noqa: E731
    fields = {
        "attention.q_lora_rank": get("q_lora_rank"),
        "attention.kv_lora_rank": get("kv_lora_rank"),
        "rope.dimension_count": get("qk_rope_head_dim"),
        "attention.key_length": get("qk_nope_head_dim") + get("qk_rope_head_dim"),
        "attention.value_length": get("v_head_dim"),
    }
    kinds = get("mlp_layer_types")
    dense = kinds.count("dense") if kinds else get("first_k_dense_replace")
    if not get("n_routed_experts") or dense == config.num_hidden_layers:
        return fields
    sigmoid = config.model_type != "deepseek_v2"
    return fields | {
        "leading_dense_block_count": dense,
        "expert_count": get("n_routed_experts"),
        "expert_used_count": get("num_experts_per_tok"),
        "expert_shared_count": get("n_shared_experts"),
        "expert_feed_forward_length": get("moe_intermediate_size"),
        "expert_group_count": get("n_group"),
        "expert_group_used_count": get("topk_group"),
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": sigmoid and bool(config.norm_topk_prob),
        "expert_gating_func": 2 if sigmoid else 1,
    }


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from two halves to neighbouring pairs."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def tensors_of(folder: Path, model: Any, architecture: str, *, split_kv_b: bool) -> dict[str, Any]:
    source, config = SafetensorsSource(folder), model.config
    tensors = {name: source.get(name, dtype=torch.float32) for name in source.names()}
    if architecture == "llama":
        for name in tensors:
            if ".q_proj." in name:
                tensors[name] = interleaved(tensors[name], config.num_attention_heads)
            if ".k_proj." in name:
                tensors[name] = interleaved(tensors[name], config.num_key_value_heads)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    nope = getattr(config, "qk_nope_head_dim", 0)
    arrays = from_hf(tensors, heads=config.num_attention_heads, nope=nope, split_kv_b=split_kv_b)
    if config.rope_parameters["rope_type"] == "llama3":
        head_dim, theta = config.head_dim, config.rope_parameters["rope_theta"]
        plain = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
        arrays["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq).float().numpy()
    return arrays


def published(family: Family) -> Family:
    """MiniCPM3's GGUF files hold no logit scale: only the published one can be converted."""
    if family.classes != "MiniCPM3":
        return family
    return dataclasses.replace(family, fields={**family.fields, "dim_model_base": 256})


# Only deepseek2 files come in two layouts: kv_b whole, or split into keys and values.
CASES = [(name, False) for name in ARCHITECTURES]
CASES += [(name, True) for name, architecture in ARCHITECTURES.items() if architecture == "deepseek2"]


@pytest.mark.parametrize(("name", "split_kv_b"), CASES)
def test_logits_of_a_converted_model(tmp_path: Path, name: str, *, split_kv_b: bool) -> None:
    architecture = ARCHITECTURES[name]
    theirs = save_model(published(BY_NAME[name]), tmp_path / "hf")
    arrays = tensors_of(tmp_path / "hf", theirs, architecture, split_kv_b=split_kv_b)
    fields = metadata(theirs.config)
    path = write_gguf(tmp_path / "m.gguf", architecture=architecture, fields=fields, tensors=arrays)
    file = GGUFFile(path)
    ours = Model.read(GGUFSource(file), ModelConfig.from_dict(config_from_gguf(file)), dtype=torch.float32)
    tokens = torch.randint(0, VOCAB, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    [logits] = Sequences(ours).run([(0, tokens)])
    assert_close(logits, expected, tolerance="logits")
