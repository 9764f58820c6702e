"""`latentkv convert`: what it writes runs, and what it refuses it refuses in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import Run, assert_one_sentence
from support.tiny_models import GQA_FAMILIES, MLA_FAMILIES, save_model


def test_convert_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    save_model(GQA_FAMILIES[0], tmp_path / "gqa")
    result = run("convert", str(tmp_path / "gqa"), str(tmp_path / "mla"), "--json")
    assert result.exit_code == 0
    written = json.loads(result.stdout)
    # Three layers, two KV heads, keys and values of 16 each, two bytes: as many as the original's.
    assert written["bf16_bytes_per_token"] == 3 * 2 * (16 + 16) * 2
    assert json.loads(run("inspect", str(tmp_path / "mla"), "--json").stdout)["geometry"]["kind"] == "mla"


def test_convert_refuses_a_model_that_has_latents_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    save_model(MLA_FAMILIES[0], tmp_path / "model")
    assert_one_sentence(run("convert", str(tmp_path / "model"), str(tmp_path / "mla")), "has latents already")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_convert_refuses_an_output_that_exists(run: Run, tmp_path: Path) -> None:
    save_model(GQA_FAMILIES[0], tmp_path / "gqa")
    assert_one_sentence(run("convert", str(tmp_path / "gqa"), str(tmp_path)), "does not exist yet")
