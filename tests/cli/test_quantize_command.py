"""`latentkv quantize`: what it writes every command takes, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import Run, assert_one_sentence


def test_quantize_writes_what_generate_and_inspect_take(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rounded"
    text.write_text("Rivers flow to the sea. " * 8)
    wish = ("quantize", tiny_folder, "--weights", "int8", "--group", "16", "--out", out)
    result = run(*wish, "--text", text, "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert [layer["layer"] for layer in record["layers"]] == [None, 0, 1]
    assert all(0 < tensor["relative_error"] < 0.01 for tensor in record["tensors"])
    assert 0.9 < record["perplexity"]["after"] / record["perplexity"]["before"] < 1.1
    assert record["written_bytes"] < record["original_bytes"] / 2

    original, rounded = (json.loads(run("inspect", folder, "--json").stdout) for folder in (tiny_folder, out))
    assert rounded["parameters"] == original["parameters"]
    assert rounded["geometry"] == original["geometry"]
    answer = run("generate", out, "--prompt", "Rivers", "--max-tokens", "4", "--json")
    assert answer.exit_code == 0


def test_quantize_prints_errors_by_layer(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    result = run("quantize", tiny_folder, "--weights", "int4", "--group", "16", "--out", tmp_path / "rounded")
    assert result.exit_code == 0
    assert "relative error of the weights" in result.stdout
    assert "kept as stored: embed_tokens, norms and biases" in result.stdout
    assert "perplexity" not in result.stdout


def test_quantize_refuses_in_one_sentence(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    wish = ("quantize", tiny_folder, "--weights", "int4")
    assert_one_sentence(run(*wish, "--out", tmp_path), "does not exist yet")
    assert_one_sentence(run(*wish, "--out", tmp_path / "new", "--group", "64"), "Use --group 16")
    assert_one_sentence(run(*wish, "--out", tmp_path / "new", "--group", "16", "--text", binary), "UTF-8 text")
    assert_one_sentence(run(*wish, "--out", tmp_path / "new", "--group", "16", "--text", tmp_path / "no"), "no")
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]
