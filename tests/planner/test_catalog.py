"""Every number in the catalogue recomputed from the configuration beside it, and adding to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latentkv.cli.parameters import FAMILIES, count_parameters
from latentkv.errors import CheckpointError, ConfigError, LatentKVError
from latentkv.geometry import MLAGeometry, from_config
from latentkv.planner.catalog import CATALOG_FILE, add_model, additions, find_model, find_record, model_names
from latentkv.planner.footprint import footprint
from latentkv.planner.model import Model

RECORDS = {record["name"]: record for record in json.loads(CATALOG_FILE.read_text("utf-8"))}
REFUSED = {
    "zai-org/GLM-5.3-Flash": "index_kpool",
    "deepseek-ai/DeepSeek-V4-Flash": "without kv_lora_rank",
    "deepseek-ai/DeepSeek-V4-Pro": "without kv_lora_rank",
    "meituan-longcat/LongCat-Flash-Lite": "v_head_dim",
    "kakaocorp/kanana-2-30b-a3b-instruct": "num_attention_heads",
}
PLANNED = sorted(RECORDS.keys() - REFUSED.keys())
# What configurations in the catalogue leave out: the code base, by the beginning of the name.
MODEL_TYPES = (
    ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek_v2"),
    ("deepseek-ai/DeepSeek-V3", "deepseek_v3"),
    ("deepseek-ai/DeepSeek-R1", "deepseek_v3"),
    ("deepseek-ai/deepseek-llm", "llama"),
    ("deepseek-ai/", "deepseek_v2"),
    ("moonshotai/", "deepseek_v3"),
    ("zai-org/", "deepseek_v3"),
    ("ascend-tribe/", "deepseek_v3"),
    ("sarvamai/", "deepseek_v3"),
    ("skt/", "deepseek_v3"),
    ("tencent/Hy4", "deepseek_v3"),
    ("tencent/Youtu", "youtu"),
    ("openbmb/", "minicpm3"),
    ("mistralai/Mixtral", "mixtral"),
    ("mistralai/Mistral-7B", "mistral"),
    ("mistralai/", "deepseek_v2"),
    ("openai/", "mixtral"),
    ("meta-llama/", "llama"),
    ("microsoft/", "phi3"),
    ("google/gemma-3", "qwen3"),
    ("google/", "gemma"),
    ("Qwen/Qwen2.5", "qwen2"),
    ("Qwen/Qwen3-30B", "qwen3_moe"),
    ("Qwen/Qwen3-235B", "qwen3_moe"),
    ("Qwen/Qwen3", "qwen3"),
    ("HuggingFaceTB/", "llama"),
)
TIED = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-1.7B", "Qwen/Qwen2.5-0.5B")
FOUR_NORMS = ("google/gemma-2-9b", "google/gemma-3-4b-it")


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTKV_HOME", str(tmp_path / "home"))


def recomputed_parameters(record: Mapping[str, Any], model: Model) -> tuple[int, int | None]:
    """From the plain layers that the geometry describes, plus indexers and the second pair of Gemma's norms."""
    config, name = dict(record["config"]), record["name"]
    model_type = next(kind for start, kind in MODEL_TYPES if name.startswith(start))
    fields: dict[str, Any] = {key: value for key, value in config.items() if not key.startswith(("index_", "sliding_"))}
    fields |= {"model_type": model_type} | ({"tie_word_embeddings": True} if name in TIED else {})
    if "n_routed_experts" in fields:
        fields.setdefault(FAMILIES[model_type].experts_field, fields["n_routed_experts"])
    counted = count_parameters(fields, from_config(fields), None)
    assert counted is not None
    hidden = config["hidden_size"]
    more = 2 * hidden * config["num_hidden_layers"] if name in FOUR_NORMS else 0
    indexers = sum(group.count for group in model.layers if group.index_elements)
    if indexers:
        heads, width = config["index_n_heads"], config["index_head_dim"]
        one = config["q_lora_rank"] * heads * width + hidden * width + 2 * width + hidden * heads
        more += indexers * one
    return counted.total + more, counted.active + more if counted.active is not None else None


def test_every_record_has_its_source() -> None:
    assert len(RECORDS) == 71
    assert all(len(record["source"]) > 10 for record in RECORDS.values())
    assert model_names() == tuple(RECORDS)


@pytest.mark.parametrize("name", PLANNED)
def test_cached_elements_and_bytes(name: str) -> None:
    record, model = RECORDS[name], find_model(name)
    cache = footprint(model.layers, format="bf16")
    index = sum(group.layers.count * group.layers.index_elements for group in cache.groups)
    assert cache.elements_per_token - index == record["kv_elems_per_token"]
    assert index == record.get("index_elems_per_token", 0)
    assert cache.bytes_per_token == 2 * cache.elements_per_token
    assert isinstance(model.geometry, MLAGeometry) == (
        record["kind"] in ("mla", "mla+dsa") or "kv_lora_rank" in record["config"]
    )


@pytest.mark.parametrize("name", [name for name in PLANNED if RECORDS[name]["params_total"]])
def test_parameters(name: str) -> None:
    record = RECORDS[name]
    assert recomputed_parameters(record, find_model(name)) == (record["params_total"], record["params_active"])


@pytest.mark.parametrize("name", [name for name in RECORDS if RECORDS[name].get("params_total_reported")])
def test_reported_parameters_are_near_the_computed_ones(name: str) -> None:
    record = RECORDS[name]
    if record["params_total"]:
        # The furthest is google/gemma-2b, named without its embeddings.
        assert record["params_total"] == pytest.approx(record["params_total_reported"], rel=0.26)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_counted_is_refused(name: str) -> None:
    with pytest.raises(LatentKVError, match=REFUSED[name]):
        find_model(name)


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "deepseek-ai/deepseek-v3", "DeepSeek-V3", "deepseek-v3"])
def test_names_may_be_shortened(name: str) -> None:
    assert find_model(name).name == "deepseek-ai/DeepSeek-V3"


def test_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"Nearest: deepseek-ai/DeepSeek-V3, "):
        find_model("deepseek-ai/DeepSeekV3")
    with pytest.raises(CheckpointError, match="`latentkv catalog list`"):
        find_model("zzzz/qqqq")


def test_a_model_is_added_and_replaced() -> None:
    config = RECORDS["deepseek-ai/DeepSeek-V2-Lite"]["config"]
    add_model("mine", config, source="a test", params_total=5, params_active=None)
    add_model("other", config, source="a test", params_total=None, params_active=None)
    file = add_model("mine", config, source="again", params_total=7, params_active=None)
    assert file.is_relative_to(file.parents[1])
    assert additions() == {"mine", "other"}
    assert model_names()[-2:] == ("mine", "other")
    assert (find_model("mine").params_total, find_model("MINE").source) == (7, "again")


def test_what_cannot_be_added() -> None:
    with pytest.raises(ConfigError, match="one of the built-in catalogue"):
        add_model("deepseek-ai/deepseek-v3", {}, source="a test", params_total=None, params_active=None)
    with pytest.raises(ConfigError, match="num_attention_heads"):
        add_model("mine", {"num_hidden_layers": 2}, source="a test", params_total=None, params_active=None)
    assert additions() == frozenset()


def test_a_damaged_addition_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "catalog.json").write_text('[{"name": "mine"}]')
    with pytest.raises(ConfigError, match=r"catalog\.json: expected a list of models with name, config and source"):
        find_record("mine")
