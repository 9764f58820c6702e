"""Hybrids counted layer by layer from the fields that describe them, and what is refused instead of guessed."""

from __future__ import annotations

from typing import Any

import pytest

from latentkv.errors import ConfigError, LatentKVError, UnsupportedModelError
from latentkv.geometry import from_config
from latentkv.planner.layers import CachedLayers, cached_layers

MLA: dict[str, Any] = {
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GQA: dict[str, Any] = {
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 128,
    "max_position_embeddings": 4096,
}
KDA = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}
KDA_STATE_BYTES = 4 * 16 * 16 * 4 + 3 * (3 * 4 * 16) * 2


def shape(layers: tuple[CachedLayers, ...]) -> list[tuple[int, str]]:
    return [(group.count, group.name) for group in layers]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, [(8, "GQA-2")]),
        ({"attention_sinks": True}, [(8, "GQA-2")]),
        ({"sliding_window": 64}, [(8, "GQA-2, window of 64")]),
        ({"sliding_window": 64, "use_sliding_window": False}, [(8, "GQA-2")]),
        (
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 6},
            [(6, "GQA-2"), (2, "GQA-2, window of 64")],
        ),
        ({"sliding_window": 64, "sliding_window_pattern": 4}, [(2, "GQA-2"), (6, "GQA-2, window of 64")]),
        ({"sliding_window": 64, "model_type": "gemma2"}, [(4, "GQA-2"), (4, "GQA-2, window of 64")]),
        ({"sliding_window": 64, "num_full_attention_layers": 3}, [(3, "GQA-2"), (5, "GQA-2, window of 64")]),
        (
            {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 4},
            [(4, "GQA-2"), (4, "GQA-2, window of 64")],
        ),
        (
            {"attention_chunk_size": 512, "layer_types": ["chunked_attention"] * 6 + ["full_attention"] * 2},
            [(2, "GQA-2"), (6, "GQA-2, window of 512")],
        ),
        ({"sliding_window": 64, "hybrid_layer_pattern": [0, 1, 1, 1] * 2}, [(2, "GQA-2"), (6, "GQA-2, window of 64")]),
        ({"full_attention_interval": 4}, [(2, "GQA-2"), (6, "linear")]),
        ({"layer_types": ["linear_attention"] * 7 + ["full_attention"]}, [(1, "GQA-2"), (7, "linear")]),
        ({"num_kv_shared_layers": 3}, [(5, "GQA-2")]),
        (
            {
                "num_kv_shared_layers": 4,
                "sliding_window": 64,
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 5,
            },
            [(1, "GQA-2"), (3, "GQA-2, window of 64")],
        ),
        ({"use_cla": True, "cla_share_factor": 3}, [(3, "GQA-2")]),
    ],
)
def test_kv_models(extra: dict[str, Any], expected: list[tuple[int, str]]) -> None:
    assert shape(cached_layers({**GQA, **extra})) == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, [(8, "MLA")]),
        ({"index_head_dim": 16, "index_n_heads": 2, "index_topk": 64}, [(8, "MLA + indexer")]),
        # Layers 0, 1 and then every fourth from 5 on, as transformers' GlmMoeDsaConfig derives them.
        (
            {"index_head_dim": 16, "index_topk": 64, "index_topk_freq": 4},
            [(3, "MLA + indexer"), (5, "MLA")],
        ),
        (
            {"index_head_dim": 16, "index_topk": 64, "indexer_types": ["full", "shared"] * 4},
            [(4, "MLA + indexer"), (4, "MLA")],
        ),
        ({"index_head_dim": 16, "index_topk_pattern": "FSSSFSSS"}, [(2, "MLA + indexer"), (6, "MLA")]),
        (
            {"linear_attn_config": {**KDA, "full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7]}},
            [(2, "MLA"), (6, "linear")],
        ),
        ({"num_full_attention_layers": 2, "num_linear_attention_layers": 6}, [(2, "MLA"), (6, "linear")]),
        ({"layer_group_size": 4}, [(2, "MLA"), (6, "linear")]),
    ],
)
def test_mla_models(extra: dict[str, Any], expected: list[tuple[int, str]]) -> None:
    assert shape(cached_layers({**MLA, **extra})) == expected


def test_indexer_schedule_of_glm_5_2_and_hy4() -> None:
    schedule = {"index_head_dim": 16, "index_topk_freq": 4}
    assert shape(cached_layers({**MLA, **schedule, "num_hidden_layers": 78}))[0] == (21, "MLA + indexer")
    assert shape(cached_layers({**MLA, **schedule, "num_hidden_layers": 34}))[0] == (10, "MLA + indexer")


def test_state_of_linear_layers() -> None:
    delta = {"linear_attn_config": {**KDA, "full_attn_layers": [4, 8]}}
    assert cached_layers({**MLA, **delta})[1].state_bytes == KDA_STATE_BYTES
    gated = {
        "full_attention_interval": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    }
    assert cached_layers({**GQA, **gated})[1].state_bytes == 4 * 8 * 16 * 4 + 3 * (2 * 2 * 8 + 4 * 16) * 2
    assert cached_layers({**MLA, "layer_group_size": 4})[1].state_bytes is None


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({**GQA, "is_encoder_decoder": True}, UnsupportedModelError, "encoder"),
        ({**GQA, "compress_ratios": [4] * 8}, UnsupportedModelError, "compress_ratios"),
        ({**GQA, "layer_types": ["novel"] * 8}, UnsupportedModelError, "novel"),
        ({**GQA, "layer_types": ["mamba"] * 8}, UnsupportedModelError, "mamba"),
        ({**GQA, "attn_type_list": [0, 1] * 4}, UnsupportedModelError, "attn_type_list"),
        ({**GQA, "mamba_d_state": 16}, UnsupportedModelError, "mamba_d_state"),
        ({**GQA, "sliding_window": 64, "swa_num_key_value_heads": 4}, UnsupportedModelError, "swa_num_key_value_heads"),
        ({**GQA, "index_topk": 64}, UnsupportedModelError, "without kv_lora_rank"),
        ({**GQA, "linear_attn_config": KDA}, UnsupportedModelError, "full_attn_layers"),
        ({**MLA, "index_topk": 64}, ConfigError, "index_head_dim"),
        ({**MLA, "index_head_dim": 16, "index_kpool": 16}, UnsupportedModelError, "index_kpool"),
        ({**GQA, "layer_types": ["full_attention"] * 7}, ConfigError, "schedule of layers"),
        ({**GQA, "layer_types": ["sliding_attention"] * 8}, ConfigError, "sliding_window"),
        ({**GQA, "num_kv_shared_layers": 8}, ConfigError, "num_kv_shared_layers"),
        ({**GQA, "sliding_window": -1}, ConfigError, "sliding_window"),
    ],
)
def test_refused(config: dict[str, Any], error: type[LatentKVError], words: str) -> None:
    with pytest.raises(error, match=words):
        cached_layers(config)


@pytest.mark.parametrize(
    "config",
    [
        GQA,
        MLA,
        {**GQA, "num_hidden_layers": 2, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
        {**GQA, "sliding_window": 64, "max_window_layers": 8},
        {**GQA, "sliding_window": 4096},
        {**GQA, "sliding_window": 64, "layer_types": ["full_attention"] * 8},
        {**GQA, "mamba_d_state": 128, "layer_types": ["attention"] * 8},
        {**GQA, "full_attention_interval": 1},
        {**GQA, "attn_type_list": [1] * 8},
        {**GQA, "use_cla": False, "cla_share_factor": 2},
        {**MLA, "num_hidden_layers": None, "num_layers": 4, "zero_expert_num": 128},
        {"text_config": MLA, "model_type": "some_vl"},
    ],
    ids=str,
)
def test_what_this_engine_runs_is_one_group_of_its_geometry(config: dict[str, Any]) -> None:
    geometry = from_config(config)
    assert cached_layers(config) == (CachedLayers(geometry.num_hidden_layers, geometry),)
