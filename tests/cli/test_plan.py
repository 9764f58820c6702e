"""`latentkv plan` as people and programs use it: answers, formats of output, and one sentence for bad input."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentkv.planner.catalog import find_record
from support.command_line import Run, assert_one_sentence

LITE = "deepseek-ai/DeepSeek-V2-Lite"


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTKV_HOME", str(tmp_path / "home"))


def json_of(run: Run, *arguments: str | Path) -> dict[str, Any]:
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_headline_of_deepseek_v2(run: Run) -> None:
    versus = ("--versus", "deepseek-ai/deepseek-llm-67b-base")
    result = run("plan", "deepseek-ai/DeepSeek-V2", "--format", "int6", *versus)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if "%" in line]
    assert [(line[-5], line[-4]) for line in lines] == [
        ("69,120", "82.24"),
        ("25,920", "93.34"),
        ("30,720", "92.11"),
        ("31,680", "91.86"),
    ]


def test_bytes_of_deepseek_v3(run: Run) -> None:
    [plan] = json_of(run, "deepseek-ai/DeepSeek-V3", "--context", "32k", "--format", "bf16")["plans"]
    [own] = plan["cache"]
    assert (own["bytes_per_token_and_layer"], own["bytes_per_token"]) == (1152, 70_272)
    assert own["sequence_bytes"] == 70_272 * 32_768
    assert [twin["attention"] for twin in plan["twins"]] == ["MHA", "GQA-8", "MQA"]
    assert plan["twins"][0]["ratio_to_own"] == pytest.approx(40_960 / 576)


def test_the_reverse_question_and_its_alternatives(run: Run) -> None:
    options = ("--memory", "141GB", "--weights", "fp8", "--tp", "8", "--users", "32", "--context", "32k")
    answer = json_of(run, "DeepSeek-V3", "--format", "bf16", *options)
    [plan] = answer["plans"]
    ways = {way["parallel"]: way for way in plan["devices"]}
    assert list(ways) == ["TP 8", "DP-attention 8", "TP 8, CP 8"]
    assert ways["TP 8"]["need"]["cache_bytes"] == 32 * 32_768 * 70_272
    assert ways["DP-attention 8"]["need"]["cache_bytes"] == 4 * 32_768 * 70_272
    assert ways["TP 8"]["most_users"] < ways["DP-attention 8"]["most_users"] < ways["TP 8, CP 8"]["most_users"]
    assert "does not split an MLA cache" in plan["notes"][0]
    assert ways["TP 8"]["most_tokens"] > 24 * 32_768
    users = ways["TP 8"]["most_users"]
    need = json_of(run, "DeepSeek-V3", "--format", "bf16", *options[:6], "--users", str(users), "--context", "32k")
    assert need["plans"][0]["devices"][0]["need"]["total_bytes"] <= 141 * 10**9


def test_several_models_make_one_table(run: Run) -> None:
    names = ("deepseek-ai/DeepSeek-V3.2", "openai/gpt-oss-20b", "Kimi-Linear-48B-A3B-Instruct")
    result = run("plan", *names, "--context", "32k", "--memory", "80GiB")
    assert result.exit_code == 0
    assert result.stdout.startswith("cache of one sequence, context of 32,768 tokens")
    for words in ("MLA + indexer", "GQA-8, window of 128", "MLA / linear", "85.90 GB (80.00 GiB)"):
        assert words in result.stdout


def test_csv(run: Run) -> None:
    result = run("plan", LITE, "--csv", "--context", "4096", "--format", "bf16", "--format", "int4")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["attention"], row["format"], row["bytes_per_token"]) for row in rows] == [
        ("MLA", "bf16", "31104"),
        ("MLA", "int4", "10800"),
        ("MHA", "bf16", "276480"),
        ("GQA-8", "bf16", "138240"),
        ("MQA", "bf16", "17280"),
    ]


def test_explained(run: Run) -> None:
    stdout = run("plan", "deepseek-ai/DeepSeek-V2", "--format", "int6", "--context", "100", "--explain").stdout
    assert "576 elements x 6 bits = 432 B + 80 B kept wider + 16 B scales = 528 B" in " ".join(stdout.split())
    assert "100 tokens = 2 pages of 64 = 128 rows in each of 60 layers" in stdout


def test_a_config_and_a_folder_with_weights(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**find_record(LITE)["config"], "model_type": "deepseek_v2"}))
    [plan] = json_of(run, config)["plans"]
    assert plan["params_total"] == find_record(LITE)["params_total"]
    assert plan["cache"][0]["bytes_per_token"] == 31_104
    [plan] = json_of(run, tiny_folder, "--context", "64", "--format", "f32")["plans"]
    stored = sum(file.stat().st_size for file in tiny_folder.glob("*.safetensors"))
    [device] = plan["devices"]
    assert (device["weights"], device["need"]["weights_bytes"]) == ("stored", stored)
    assert device["need"]["cache_bytes"] == 64 * 2 * 2 * (16 + 16) * 4


def test_a_config_without_known_parameters_shows_its_cache(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**find_record(LITE)["config"], "model_type": "novel"}))
    [plan] = json_of(run, config)["plans"]
    assert plan["devices"] == []
    [plan] = json_of(run, config, "--weights", "14GiB", "--memory", "16GiB")["plans"]
    assert plan["devices"][0]["need"]["weights_bytes"] == 14 << 30
    assert_one_sentence(run("plan", config, "--memory", "16GiB"), "number of parameters is not known", "--weights")


def test_plot(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    assert run("plan", LITE, "--plot", file, "--memory", "80GB").exit_code == 0
    assert "DeepSeek-V2-Lite" in file.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deepseek-ai/DeepSeek-V33"], ["nothing of that name", "Nearest: deepseek-ai/DeepSeek-V3", "--hub"]),
        (["zzzz"], ["latentkv catalog list"]),
        (["./absent"], ["nothing there"]),
        (["absent.json"], ["no such file"]),
        (["deepseek-ai/DeepSeek-V4-Pro"], ["index_topk = 1024", "several tokens"]),
        ([LITE, "--memory", "80 GX"], ["--memory", "80GiB or 80GB"]),
        ([LITE, "--memory", "0GB"], ["above zero"]),
        ([LITE, "--memory", "-80GB"], ["--memory"]),
        ([LITE, "--context", "0"], ["--context", "at least one token"]),
        ([LITE, "--context", "many"], ["--context", "32k"]),
        ([LITE, "--users", "0"], ["users", "1 or more"]),
        ([LITE, "--gqa", "-1"], ["gqa_groups", "1 or more"]),
        ([LITE, "--format", "int7"], ["cache format", "int6"]),
        ([LITE, "--weights", "int5"], ["weights", "int4"]),
        ([LITE, "--weights", "stored"], ["no weight files"]),
        ([LITE, "--tp", "0"], ["tensor parallelism"]),
        ([LITE, "--cp", "2"], ["context parallelism", "divisor"]),
        ([LITE, "--page-tokens", "48"], ["--page-tokens", "64"]),
        ([LITE, "--step-tokens", "0"], ["step_tokens"]),
        ([LITE, "--reserve", "5"], ["--reserve", "5GiB"]),
        ([LITE, "--versus", "DeepSeek-V33"], ["Nearest"]),
        ([LITE, "--plot", "plan.gif"], [".png"]),
        ([LITE, "--json", "--csv"], ["one of them"]),
        ([], ["MODEL"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(run("plan", *arguments), *words)


@pytest.mark.parametrize("missing", ["v_head_dim", "qk_rope_head_dim", "num_hidden_layers", "num_attention_heads"])
def test_a_missing_field_is_named(run: Run, tmp_path: Path, missing: str) -> None:
    config = tmp_path / "config.json"
    fields = {name: value for name, value in find_record(LITE)["config"].items() if name != missing}
    config.write_text(json.dumps(fields))
    assert_one_sentence(run("plan", config), f"config field {missing}", "no such field")


def test_planning_loads_nothing_heavy() -> None:
    heavy = ("torch", "rich", "numpy", "matplotlib", "transformers", "huggingface_hub", "gguf", "latentkv.cli.chat")
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr))\n"
        "from latentkv.cli.main import main\n"
        "main(['plan', 'DeepSeek-V3', '--memory', '80GiB'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.split()) == (0, [])
    assert "1,152" in done.stdout
