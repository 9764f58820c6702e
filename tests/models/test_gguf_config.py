import numpy as np
import pytest

from latentkv.errors import ConfigError, UnsupportedModelError
from latentkv.models.gguf_config import config_from_gguf
from latentkv.models.locate import find_model
from latentkv.models.weights import GGUFFile
from support.tiny_gguf import byte_level_tokenizer, write_gguf

COMMON = {
    "block_count": 3,
    "context_length": 4096,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
    "vocab_size": 99,
}
LATENT = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 24,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 20,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
}
EXPERTS = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 32,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 1024,
    "rope.scaling.yarn_log_multiplier": 0.0707,
}


def config(tmp_path, architecture, fields, *, tensors=(), tokenizer=None):
    arrays = tensors if isinstance(tensors, dict) else {name: np.ones(4, np.float32) for name in tensors}
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture=architecture, fields=fields, tensors=arrays, tokenizer=tokenizer)
    return config_from_gguf(GGUFFile(path))


def expect(config, **fields):
    assert {name: config.get(name) for name in fields} == fields


def test_llama(tmp_path):
    got = config(tmp_path, "llama", COMMON, tensors=["output.weight"])
    expect(
        got,
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        vocab_size=99,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        rope_interleave=True,
        qkv_bias=False,
        output_bias=False,
    )
    assert "rope_scaling" not in got


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_rows_are_in_halves_and_biases_are_seen(tmp_path, architecture):
    fields = COMMON | {"attention.key_length": 32, "attention.value_length": 32}
    got = config(tmp_path, architecture, fields, tensors=["blk.0.attn_q.bias"])
    expect(got, head_dim=32, rope_interleave=False, qkv_bias=True, output_bias=False, tie_word_embeddings=True)


def test_deepseek_v3_with_yarn_and_experts(tmp_path):
    fields = COMMON | LATENT | EXPERTS | YARN
    got = config(tmp_path, "deepseek2", fields, tensors=["blk.1.exp_probs_b.bias"])
    expect(
        got,
        model_type="deepseek_v3",
        rope_interleave=True,
        kv_lora_rank=32,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=12,
        v_head_dim=16,
        num_key_value_heads=4,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
    )
    expect(
        got["rope_scaling"],
        rope_type="yarn",
        factor=40.0,
        original_max_position_embeddings=1024,
        mscale=0.707,
        mscale_all_dim=0.707,
        beta_fast=32.0,
        beta_slow=1.0,
    )


def test_deepseek_v2_of_the_old_layout_without_query_compression(tmp_path):
    fields = COMMON | LATENT | EXPERTS | {"attention.key_length": 20, "attention.value_length": 16}
    fields |= {"attention.head_count_kv": 4, "expert_gating_func": 1, "expert_weights_norm": False}
    for name in ("attention.key_length_mla", "attention.value_length_mla", "attention.q_lora_rank"):
        del fields[name]
    got = config(tmp_path, "deepseek2", fields)
    expect(got, model_type="deepseek_v2", q_lora_rank=None, qk_nope_head_dim=12, v_head_dim=16, num_key_value_heads=4)
    expect(got, scoring_func="softmax", topk_method="group_limited_greedy", norm_topk_prob=False)


def test_a_dense_deepseek_and_its_extra_prediction_layers(tmp_path):
    got = config(tmp_path, "deepseek2", COMMON | LATENT | {"nextn_predict_layers": 1})
    expect(got, num_hidden_layers=2, n_routed_experts=None, first_k_dense_replace=2)


def test_minicpm3_has_its_scales_and_rope_factors(tmp_path):
    short, long = np.linspace(1, 2, 4, dtype=np.float32), np.linspace(3, 4, 4, dtype=np.float32)
    fields = COMMON | LATENT | {"attention.key_length": 20}
    for name in ("attention.key_length_mla", "attention.value_length_mla", "attention.value_length"):
        del fields[name]
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    got = config(tmp_path, "minicpm3", fields, tensors=tensors)
    expect(got, scale_emb=12, scale_depth=1.4, dim_model_base=256, v_head_dim=16, rope_interleave=False)
    expect(
        got["rope_scaling"],
        rope_type="longrope",
        short_factor=short.tolist(),
        long_factor=long.tolist(),
        original_max_position_embeddings=4096,
        attention_factor=1.0,
    )


def test_llama3_divisors_hold_at_every_length(tmp_path):
    divisors = np.array([1, 2, 4, 8], np.float32)
    scaling = config(tmp_path, "llama", COMMON, tensors={"rope_freqs.weight": divisors})["rope_scaling"]
    assert scaling["short_factor"] == scaling["long_factor"] == [1, 2, 4, 8]


def test_linear_scaling_and_partial_rotation(tmp_path):
    fields = COMMON | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.dimension_count": 8}
    got = config(tmp_path, "llama", fields)
    expect(got, rope_scaling={"rope_type": "linear", "factor": 4.0}, partial_rotary_factor=0.5)


def test_end_and_begin_tokens(tmp_path):
    tokens = ["<|endoftext|>", "<|im_end|>", "a", "<|eot_id|>"]
    tokenizer = byte_level_tokenizer(tokens=tokens, token_type=[3, 3, 1, 1], eos_token_id=1, bos_token_id=0)
    expect(config(tmp_path, "llama", COMMON, tokenizer=tokenizer), eos_token_id=[1, 0], bos_token_id=0)
    expect(config(tmp_path, "llama", COMMON), eos_token_id=None, bos_token_id=None)


@pytest.mark.parametrize("missing", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_missing_key_is_named(tmp_path, missing):
    fields = {key: value for key, value in COMMON.items() if key != missing}
    with pytest.raises(ConfigError, match=rf"llama\.{missing}.*got nothing"):
        config(tmp_path, "llama", fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expert_count": 8}, "mixture of experts"),
        ({"rope.scaling.type": "longrope"}, "RoPE scaling"),
    ],
)
def test_variants_that_cannot_run_are_refused(tmp_path, change, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        config(tmp_path, "llama", COMMON | change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention.head_count_kv": [1, 2, 2]}, "layers that differ"),
        ({"attention.head_count": 0}, "positive"),
        ({"block_count": "three"}, "expected one int"),
        ({"attention.head_count": 7}, "multiple of 7"),
        ({"rope.dimension_count": 64}, "rotated"),
    ],
)
def test_contradictions_are_config_errors(tmp_path, change, reason):
    with pytest.raises(ConfigError, match=reason):
        config(tmp_path, "llama", COMMON | change)


def test_other_deepseek_variants_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="temperature"):
        config(tmp_path, "deepseek2", COMMON | LATENT | {"attention.temperature_scale": 0.1})
    with pytest.raises(UnsupportedModelError, match="gating"):
        config(tmp_path, "deepseek2", COMMON | LATENT | EXPERTS | {"expert_gating_func": 4})


@pytest.mark.model
def test_the_real_model():
    got = config_from_gguf(GGUFFile(find_model().path))
    expect(got, hidden_size=576, num_hidden_layers=30, num_key_value_heads=3, head_dim=64, rope_theta=100000.0)
    expect(got, tie_word_embeddings=True, vocab_size=49152, eos_token_id=[2, 0], bos_token_id=1, rms_norm_eps=1e-5)
