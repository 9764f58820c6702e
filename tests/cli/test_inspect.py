"""`latentkv inspect`: published numbers, refused models, bad files; and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentkv.cache.layout import FORMATS
from latentkv.planner.catalog import CATALOG_FILE
from support.command_line import Run, assert_one_sentence

MODELS = {record["name"]: record["config"] for record in json.loads(CATALOG_FILE.read_text("utf-8"))}
V2 = MODELS["deepseek-ai/DeepSeek-V2"] | {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]}


def write_config(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def cost(record: dict[str, Any], attention: str, format: str) -> dict[str, Any]:
    (found,) = [row for row in record["cache"] if (row["attention"], row["format"]) == (attention, format)]
    return found


def test_deepseek_v2_as_json(run: Run, tmp_path: Path) -> None:
    result = run("inspect", write_config(tmp_path, V2), "--json", "--context", "1024")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert set(record) == {
        "model",
        "architecture",
        "resolved",
        "reason",
        "known_fields",
        "geometry",
        "parameters",
        "context_tokens",
        "cache",
    }
    assert record["architecture"] == "DeepseekV2ForCausalLM"
    assert record["resolved"] is True
    assert record["reason"] is None
    assert record["geometry"]["kind"] == "mla"
    assert record["geometry"]["kv_lora_rank"] == 512
    assert record["parameters"] == {"total": 235_741_434_880, "active": 21_375_800_320, "counted_from": "config"}
    assert cost(record, "MLA", "bf16") == {
        "attention": "MLA",
        "format": "bf16",
        "bytes_per_token_and_layer": 1152,
        "bytes_per_token": 69_120,
        "context_bytes": 69_120 * 1024,
        "ratio_to_own": 1.0,
    }
    assert cost(record, "MLA", "f32")["bytes_per_token"] == 138_240
    assert cost(record, "MHA", "bf16")["bytes_per_token"] == 2 * 60 * 128 * (128 + 64 + 128)
    assert cost(record, "GQA-8", "bf16")["bytes_per_token"] == 2 * 60 * 8 * (128 + 64 + 128)
    assert cost(record, "MQA", "bf16")["bytes_per_token"] == 2 * 60 * (128 + 64 + 128)
    assert cost(record, "MHA", "bf16")["ratio_to_own"] == pytest.approx(128 * 320 / 576)


def test_deepseek_v2_as_tables(run: Run, tmp_path: Path) -> None:
    write_config(tmp_path, V2)
    result = run("inspect", tmp_path, "--context", "16384")
    assert result.exit_code == 0
    assert "69,120" in result.stdout
    assert "235,741,434,880, 21,375,800,320 active per token" in result.stdout
    # 69,120 bytes * 16,384 tokens is 1,132,462,080 bytes.
    assert "1.055" in result.stdout
    assert "1.132" in result.stdout
    assert "GiB at context" in result.stdout
    assert "GB at context" in result.stdout


def test_context_defaults_to_the_models_own(run: Run, tmp_path: Path) -> None:
    record = json.loads(run("inspect", write_config(tmp_path, V2), "--json").stdout)
    assert record["context_tokens"] == 163_840


def test_own_form_is_listed_once(run: Run, tmp_path: Path) -> None:
    record = json.loads(run("inspect", write_config(tmp_path, MODELS["Qwen/Qwen3-8B"]), "--json").stdout)
    assert [row["attention"] for row in record["cache"]] == [form for form in ("GQA-8", "MHA", "MQA") for _ in FORMATS]


def test_converted_model_is_compared_with_its_former_self(run: Run, tmp_path: Path) -> None:
    converted = {
        "model_type": "latentkv_mla",
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "kv_lora_rank": 192,
        "qk_rope_head_dim": 192,
        "qk_nope_head_dim": 0,
        "v_head_dim": 64,
        "rope_groups": 3,
    }
    record = json.loads(run("inspect", write_config(tmp_path, converted), "--json").stdout)
    assert cost(record, "MLA", "bf16")["bytes_per_token"] == 23_040
    assert cost(record, "GQA-3", "bf16")["bytes_per_token"] == 23_040
    assert cost(record, "MHA", "bf16")["bytes_per_token"] == 69_120


@pytest.mark.parametrize("as_json", [False, True])
def test_refused_model_shows_what_is_known(run: Run, tmp_path: Path, as_json: bool) -> None:
    config = MODELS["deepseek-ai/DeepSeek-V3.2"] | {"architectures": ["DeepseekV32ForCausalLM"]}
    result = run("inspect", write_config(tmp_path, config), *(["--json"] if as_json else []))
    assert_one_sentence(result, "index_topk = 2048", "sparse attention")
    assert "DeepseekV32ForCausalLM" in result.stdout
    assert "61" in result.stdout
    if as_json:
        record = json.loads(result.stdout)
        assert (record["resolved"], record["geometry"], record["cache"]) == (False, None, [])
        assert "sparse attention" in record["reason"]


def test_missing_field_is_named(run: Run, tmp_path: Path) -> None:
    config = {name: value for name, value in V2.items() if name != "v_head_dim"}
    assert_one_sentence(run("inspect", write_config(tmp_path, config)), "v_head_dim", "no such field")


def test_size_needed_only_for_counting_is_named(run: Run, tmp_path: Path) -> None:
    config = {name: value for name, value in V2.items() if name != "vocab_size"}
    assert_one_sentence(run("inspect", write_config(tmp_path, config)), "vocab_size")


@pytest.mark.parametrize("text", ['{"num_hidden_layers": 3', "", "[1]", "[" * 100_000, "\x00"])
def test_damaged_config(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    result = run("inspect", tmp_path)
    assert_one_sentence(result, "config.json", "JSON")
    assert result.stdout == ""


def test_config_that_is_not_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert_one_sentence(run("inspect", tmp_path / "config.json"), "config.json")


def test_damaged_gguf(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert_one_sentence(run("inspect", tmp_path / "model.gguf"), "model.gguf")


def test_folder_without_a_config(run: Run, tmp_path: Path) -> None:
    assert_one_sentence(run("inspect", tmp_path), "config.json")


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such", "nothing.gguf", "nothing.json", "a/b/c"])
def test_nothing_of_that_name(run: Run, name: str) -> None:
    assert_one_sentence(run("inspect", name), name.removeprefix("./"))


def test_weights_are_counted_from_their_headers(run: Run, tiny_folder: Path) -> None:
    record = json.loads(run("inspect", tiny_folder, "--json").stdout)
    layer = 48 * (64 + 2 * 2 * 16) + 64 * 48 + 3 * 48 * 80 + 2 * 48
    assert record["parameters"] == {
        "total": 2 * 300 * 48 + 2 * layer + 48,
        "active": 2 * 300 * 48 + 2 * layer + 48,
        "counted_from": "weights",
    }


def test_damaged_weights_header(run: Run, tmp_path: Path) -> None:
    write_config(tmp_path, MODELS["Qwen/Qwen3-8B"])
    (tmp_path / "model.safetensors").write_bytes((40).to_bytes(8, "little") + b'{"a": {')
    assert_one_sentence(run("inspect", tmp_path), "model.safetensors", "header")


def test_a_config_is_inspected_without_torch(tmp_path: Path) -> None:
    path = write_config(tmp_path, V2)
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['latentkv', 'inspect', sys.argv[1]];"
        "from latentkv.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "69,120" in done.stdout


@pytest.mark.model
def test_default_model(run: Run) -> None:
    record = json.loads(run("inspect", "--json").stdout)
    assert record["geometry"]["kind"] == "gqa"
    assert record["parameters"]["total"] == 134_515_008
    assert cost(record, "GQA-3", "bf16")["bytes_per_token"] == 23_040
