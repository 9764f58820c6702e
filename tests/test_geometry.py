"""Geometries of 71 published models, resolved from fields, and every way a configuration can be wrong."""

from __future__ import annotations

import json

import pytest

from latentkv.cache.layout import layout_for
from latentkv.errors import ConfigError, UnsupportedModelError
from latentkv.geometry import AttentionGeometry, MLAGeometry, from_config
from latentkv.planner.catalog import CATALOG_FILE

RECORDS = {record["name"]: record for record in json.loads(CATALOG_FILE.read_text("utf-8"))}
# Models that one row per token and layer does not describe: the field that the refusal must name, and its meaning.
REFUSED = {
    "deepseek-ai/DeepSeek-V3.2": ("index_topk", "sparse attention"),
    "deepseek-ai/DeepSeek-V3.2-Exp": ("index_topk", "sparse attention"),
    "deepseek-ai/DeepSeek-V4-Flash": ("index_topk", "sparse attention"),
    "deepseek-ai/DeepSeek-V4-Pro": ("index_topk", "sparse attention"),
    "zai-org/GLM-5": ("index_topk", "sparse attention"),
    "zai-org/GLM-5.1": ("index_topk", "sparse attention"),
    "zai-org/GLM-5.2": ("index_topk", "sparse attention"),
    "zai-org/GLM-5.3-Flash": ("index_topk", "sparse attention"),
    "skt/A.X-K2-Light": ("index_topk", "sparse attention"),
    "tencent/Hy4-preview": ("index_topk", "sparse attention"),
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": ("linear_attn_config", "linear attention"),
    "moonshotai/Kimi-K3": ("linear_attn_config", "linear attention"),
    "inclusionAI/Ling-3.0-tiny": ("num_linear_attention_layers", "linear attention"),
    "inclusionAI/Ling-3.0-flash": ("num_linear_attention_layers", "linear attention"),
    "openai/gpt-oss-20b": ("sliding_window", "sliding-window"),
    "openai/gpt-oss-120b": ("sliding_window", "sliding-window"),
    "mistralai/Mistral-7B-v0.1": ("sliding_window", "sliding-window"),
    "google/gemma-2-9b": ("sliding_window", "sliding-window"),
    "google/gemma-3-4b-it": ("sliding_window", "sliding-window"),
    "microsoft/Phi-3-mini-4k-instruct": ("sliding_window", "sliding-window"),
}
# Records whose source does not state a field that the geometry needs.
INCOMPLETE = {
    "meituan-longcat/LongCat-Flash-Lite": "v_head_dim",
    "kakaocorp/kanana-2-30b-a3b-instruct": "num_attention_heads",
}
RESOLVED = sorted(RECORDS.keys() - REFUSED.keys() - INCOMPLETE.keys())

MLA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GQA = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 128}


def without(config: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in names}


def test_every_record_is_covered() -> None:
    assert len(RECORDS) == 71
    assert RECORDS.keys() >= REFUSED.keys() | INCOMPLETE.keys()
    assert not REFUSED.keys() & INCOMPLETE.keys()


@pytest.mark.parametrize("name", RESOLVED)
def test_published_model_resolves(name: str) -> None:
    record = RECORDS[name]
    geometry = from_config(record["config"])
    assert geometry.kind == record["kind"]
    assert geometry.row_elements * geometry.num_hidden_layers == record["kv_elems_per_token"]
    assert layout_for(geometry, "bf16").bytes_per_token == 2 * record["kv_elems_per_token"]


@pytest.mark.parametrize("name", REFUSED)
def test_published_model_is_refused_with_its_reason(name: str) -> None:
    field, meaning = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as error:
        from_config(RECORDS[name]["config"])
    assert str(error.value).startswith(f"{field} = ")
    assert meaning in str(error.value)


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_record_names_the_missing_field(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config field {INCOMPLETE[name]}: .* got no such field\.$"):
        from_config(RECORDS[name]["config"])


def test_deepseek_v2_caches_69120_bytes_per_token() -> None:
    geometry = from_config(RECORDS["deepseek-ai/DeepSeek-V2"]["config"])
    assert layout_for(geometry, "bf16").bytes_per_token == 69_120


def test_all_fields_reach_the_geometry() -> None:
    assert from_config(MLA) == MLAGeometry(
        num_hidden_layers=2,
        num_attention_heads=4,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
        q_lora_rank=24,
        rope_groups=1,
    )
    assert from_config({**GQA, "head_dim": 20, "v_head_dim": 24}) == AttentionGeometry(
        num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, head_dim=20, v_head_dim=24
    )


def test_head_dim_defaults_to_hidden_per_head_and_kv_heads_to_heads() -> None:
    geometry = from_config(without(GQA, "num_key_value_heads"))
    assert geometry == AttentionGeometry(
        num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8, head_dim=16, v_head_dim=16
    )


@pytest.mark.parametrize("key", ["text_config", "language_config", "llm_config"])
def test_multimodal_config_is_read_from_its_language_model(key: str) -> None:
    assert from_config({"model_type": "some_vl", "num_attention_heads": 99, key: MLA}) == from_config(MLA)


def test_nulls_are_absent_fields() -> None:
    assert from_config({**GQA, "kv_lora_rank": None, "index_topk": None, "sliding_window": None}) == from_config(GQA)


def test_openpangu_spellings() -> None:
    renamed = {
        "kv_lora_rank": "attention_kv_lora_dim",
        "q_lora_rank": "attention_q_lora_dim",
        "qk_nope_head_dim": "attention_qk_dim",
        "qk_rope_head_dim": "attention_qk_rope_dim",
        "v_head_dim": "attention_v_dim",
    }
    assert from_config({renamed.get(name, name): value for name, value in MLA.items()}) == from_config(MLA)


def test_two_spellings_that_disagree() -> None:
    with pytest.raises(ConfigError, match="kv_lora_rank and attention_kv_lora_dim"):
        from_config({**MLA, "attention_kv_lora_dim": 33})


def test_minicpm3_value_dim_comes_from_hidden_size_only_with_its_own_fields() -> None:
    bare = without(MLA, "v_head_dim")
    marked = {**bare, "scale_depth": 1.4, "dim_model_base": 256}
    assert from_config(marked).v_head_dim == 64 // 4
    with pytest.raises(ConfigError, match="config field v_head_dim"):
        from_config(bare)


def test_longcat_counts_two_attention_sublayers_per_layer() -> None:
    longcat = {**without(MLA, "num_hidden_layers"), "num_layers": 14, "zero_expert_num": 128}
    assert from_config(longcat).num_hidden_layers == 28
    assert from_config({**longcat, "num_hidden_layers": 28}).num_hidden_layers == 28
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        from_config({**longcat, "num_hidden_layers": 14})


def test_ambiguous_layer_count_of_a_latent_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="two attention sublayers"):
        from_config({**without(MLA, "num_hidden_layers"), "num_layers": 14})


def test_rope_groups_of_a_converted_model() -> None:
    converted = {**MLA, "model_type": "latentkv_mla", "qk_nope_head_dim": 0, "rope_groups": 2}
    geometry = from_config(converted)
    assert geometry.rope_groups == 2
    assert geometry.query_rope_dim == 4


@pytest.mark.parametrize(
    ("extra", "kv_heads"),
    [
        ({"multi_query": True, "num_kv_heads": 8}, 1),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 4}, 4),
        ({"multi_query_attention": True, "multi_query_group_num": 2}, 2),
        ({"n_head_kv": 4}, 4),
    ],
)
def test_key_value_heads_of_falcon_and_chatglm(extra: dict[str, object], kv_heads: int) -> None:
    geometry = from_config({**without(GQA, "num_key_value_heads"), **extra})
    assert isinstance(geometry, AttentionGeometry)
    assert geometry.num_key_value_heads == kv_heads


def test_use_mla_false_is_plain_attention() -> None:
    switched_off = {**GQA, "use_mla": False, "kv_lora_rank": None, "qk_nope_head_dim": 0, "v_head_dim": 0}
    assert from_config(switched_off) == from_config(GQA)


@pytest.mark.parametrize("name", ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"])
def test_missing_mla_field_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config field {name}: "):
        from_config(without(MLA, name))


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_missing_attention_field_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config field {name}: "):
        from_config(without(GQA, name))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**GQA, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({**GQA, "head_dim": 15}, "head_dim"),
        ({**GQA, "hidden_size": 130}, "hidden_size"),
        ({**GQA, "num_attention_heads": True}, "num_attention_heads"),
        ({**GQA, "num_attention_heads": -8}, "num_attention_heads"),
        ({**GQA, "num_hidden_layers": 0}, "num_hidden_layers"),
        ({**GQA, "head_dim": 16.0}, "head_dim"),
        ({**GQA, "head_dim": "16"}, "head_dim"),
        ({**MLA, "qk_rope_head_dim": 7}, "qk_rope_head_dim"),
        ({**MLA, "qk_rope_head_dim": -8}, "qk_rope_head_dim"),
        ({**MLA, "kv_lora_rank": 0}, "kv_lora_rank"),
        ({**MLA, "rope_groups": 3}, "rope_groups"),
        ({**MLA, "num_attention_heads": 3, "rope_groups": 2}, "rope_groups"),
        ({**MLA, "qk_rope_head_dim": 2, "rope_groups": 2}, "qk_rope_head_dim"),
        ({**MLA, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0}, "qk_nope_head_dim"),
        ({**MLA, "qk_head_dim": 25}, "qk_nope_head_dim"),
    ],
)
def test_contradictions_are_config_errors(config: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        from_config(config)


@pytest.mark.parametrize("config", [[], "llama", None])
def test_a_config_is_a_mapping(config: object) -> None:
    with pytest.raises(ConfigError, match="JSON object"):
        from_config(config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("extra", "meaning"),
    [
        ({"linear_attn_config": {"kda_layers": [1, 2], "full_attn_layers": [3]}}, "linear attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear attention"),
        ({"layer_types": ["kda", "full_attention"]}, "linear attention"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding-window"),
        ({"layer_types": ["indexed_attention"] * 2}, "sparse attention"),
        ({"layer_types": ["heavily_compressed_attention"] * 2}, "compressed attention"),
        ({"layer_types": ["full_attention", "novel"]}, "unknown kind 'novel'"),
        ({"full_attention_interval": 4}, "linear attention"),
        ({"layer_group_size": 4}, "linear attention"),
        ({"attn_type_list": [0, 1]}, "linear attention"),
        ({"hybrid_layer_pattern": [0, 1]}, "sliding-window"),
        ({"mamba_d_state": 16}, "state-space"),
        ({"compress_ratios": [0, 4, 128]}, "compressed attention"),
        ({"index_n_heads": 4}, "sparse attention"),
        ({"sliding_window": 64, "max_position_embeddings": 128}, "sliding-window"),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, "sliding-window"),
        ({"attention_chunk_size": 8192}, "chunked attention"),
        ({"num_kv_shared_layers": 2}, "cross-layer sharing"),
        ({"use_cla": True}, "cross-layer sharing"),
        ({"attention_sinks": True}, "attention sinks"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"num_key_value_heads": [2, 4]}, "layer to layer"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_recognised_and_refused(extra: dict[str, object], meaning: str, nested: bool) -> None:
    config: dict[str, object] = {**GQA, **extra}
    with pytest.raises(UnsupportedModelError, match=meaning):
        from_config({"text_config": config} if nested else config)


@pytest.mark.parametrize(
    "extra",
    [
        {"sliding_window": 64, "use_sliding_window": False},
        {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
        {"sliding_window": 128, "max_position_embeddings": 128},
        {"sliding_window": 64, "layer_types": ["full_attention", "full_attention"]},
        {"mamba_d_state": 128, "layer_types": ["attention", "attention"]},
        {"full_attention_interval": 1},
        {"attn_type_list": [1, 1]},
        {"use_cla": False, "cla_share_factor": 2},
        {"is_encoder_decoder": False},
    ],
)
def test_switched_off_fields_do_not_refuse(extra: dict[str, object]) -> None:
    assert from_config({**GQA, **extra}) == from_config(GQA)


def test_encoder_decoder_is_seen_above_a_text_config() -> None:
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        from_config({"is_encoder_decoder": True, "text_config": GQA})
