"""`latentkv catalog`: listing, showing and adding models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentkv.planner.catalog import find_record, model_names
from support.command_line import Run, assert_one_sentence

LITE = "deepseek-ai/DeepSeek-V2-Lite"


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTKV_HOME", str(tmp_path / "home"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "my-model" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**find_record(LITE)["config"], "model_type": "deepseek_v2"}))
    return file


def test_list(run: Run) -> None:
    assert json.loads(run("catalog", "list", "--json").stdout) == list(model_names())
    lines = run("catalog", "list", "v2", "lite").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [LITE, "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct"]
    assert "15,552 elements/token" in lines[0]
    assert run("catalog", "list", "zzz").stdout == ""


def test_show(run: Run) -> None:
    assert json.loads(run("catalog", "show", LITE, "--json").stdout) == find_record(LITE)
    assert "arXiv:2405.04434" in run("catalog", "show", "DeepSeek-V2").stdout
    assert_one_sentence(run("catalog", "show", "DeepSeek-V22"), "Nearest: deepseek-ai/DeepSeek-V2")


def test_add_and_plan(run: Run, config: Path) -> None:
    added = run("catalog", "add", config)
    assert added.exit_code == 0
    assert added.stdout.startswith("added my-model to ")
    plan = json.loads(run("plan", "my-model", "--json").stdout)["plans"][0]
    assert plan["cache"][0]["bytes_per_token"] == 31_104
    assert plan["params_total"] == find_record(LITE)["params_total"]
    assert plan["source"] == f"added from {config.resolve()}"
    assert "added by you" in run("catalog", "list", "my-model").stdout


def test_add_a_folder_under_another_name(run: Run, config: Path) -> None:
    assert run("catalog", "add", config.parent, "--name", "me/mine", "--params", "42").exit_code == 0
    assert json.loads(run("plan", "me/mine", "--json").stdout)["plans"][0]["params_total"] == 42


def test_what_cannot_be_added(run: Run, config: Path) -> None:
    assert_one_sentence(run("catalog", "add", config, "--name", LITE), "built-in catalogue", "--name")
    assert_one_sentence(run("catalog", "add", "absent"), "nothing there")
    config.write_text("{}")
    assert_one_sentence(run("catalog", "add", config), "config field num_hidden_layers")
