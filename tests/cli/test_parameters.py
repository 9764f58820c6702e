"""Parameter counts from configurations against the published models' totals."""

from __future__ import annotations

import json

import pytest

from latentkv.cli.parameters import FAMILIES, count_parameters
from latentkv.geometry import from_config
from latentkv.planner.catalog import CATALOG_FILE

RECORDS = {record["name"]: record for record in json.loads(CATALOG_FILE.read_text("utf-8"))}
MODEL_TYPES = {
    "deepseek-ai/DeepSeek-V2": "deepseek_v2",
    "deepseek-ai/DeepSeek-V2-Lite": "deepseek_v2",
    "deepseek-ai/DeepSeek-V3": "deepseek_v3",
    "moonshotai/Moonlight-16B-A3B": "deepseek_v3",
    "moonshotai/Kimi-K2-Instruct": "kimi_k2",
    "zai-org/GLM-4.7-Flash": "glm4_moe_lite",
    "openbmb/MiniCPM3-4B": "minicpm3",
    "tencent/Youtu-LLM-2B": "youtu",
    "meta-llama/Llama-2-7b-hf": "llama",
    "meta-llama/Llama-3.1-70B": "llama",
    "google/gemma-7b": "gemma",
    "microsoft/phi-4": "phi3",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral",
    "Qwen/Qwen2.5-7B": "qwen2",
    "Qwen/Qwen2.5-1.5B": "qwen2",
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-32B": "qwen3",
    "Qwen/Qwen3-30B-A3B": "qwen3_moe",
}


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_published_totals(name: str) -> None:
    record, model_type = RECORDS[name], MODEL_TYPES[name]
    fields = dict(record["config"], model_type=model_type)
    if "n_routed_experts" in fields:
        fields.setdefault(FAMILIES[model_type].experts_field, fields["n_routed_experts"])
    counted = count_parameters(fields, from_config(fields), None)
    assert counted is not None
    assert (counted.total, counted.active) == (record["params_total"], record["params_active"])


@pytest.mark.parametrize("extra", [{"model_type": "novel"}, {}, {"model_type": "qwen3_moe", "mlp_only_layers": [0]}])
def test_unknown_layers_are_not_guessed(extra: dict[str, object]) -> None:
    fields = dict(RECORDS["Qwen/Qwen3-30B-A3B"]["config"], **extra)
    assert count_parameters(fields, from_config(fields), None) is None
