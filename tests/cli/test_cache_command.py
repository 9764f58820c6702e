"""`latentkv cache`, and the options that make one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.command_line import Run, assert_one_sentence

PROMPT = "abcdefgh" * 10


def generate(run: Run, model: Path, *options: str | Path) -> tuple[str, int]:
    """The text, and how many prompt tokens were found."""
    result = run("generate", model, "-p", PROMPT, "--max-tokens", "4", "--page-tokens", "16", *options)
    assert result.exit_code == 0, result.stderr
    found = re.search(r"\((\d+) more found", result.stderr)
    return result.stdout, int(found[1]) if found else 0


def test_the_second_run_finds_the_prompt_of_the_first(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = generate(run, tiny_folder, "--cache-dir", cache)
    second = generate(run, tiny_folder, "--cache-dir", cache, "--host-cache", "1MiB", "--swap-dir", tmp_path / "swap")
    assert (first[1], second[1]) == (0, 64)
    assert second[0] == first[0]
    assert generate(run, tiny_folder, "--cache-dir", cache, "--cache-format", "int8")[1] == 0


def test_inspect_and_clear(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    generate(run, tiny_folder, "--cache-dir", cache)
    generate(run, tiny_folder, "--cache-dir", cache, "--cache-format", "int8")
    records = json.loads(run("cache", "inspect", cache, "--json").stdout)
    assert sorted((record["format"], record["pages"], record["page_tokens"]) for record in records) == [
        ("bf16", 5, 16),
        ("int8", 5, 16),
    ]
    for record in records:
        assert record["bytes"] == 5 * 16 * record["bytes_per_token"]
        assert re.fullmatch(r"llama, [\d,]+ parameters", record["model"])
        assert 0 <= record["age_seconds"] < 3600
    text = run("cache", "inspect", cache).stdout
    assert re.search(
        r"llama, [\d,]+ parameters: bf16, 5 pages of 16 tokens \(80 tokens\), .* last opened 0\.0 hours ago", text
    )
    assert "of 2 models" in run("cache", "clear", cache).stdout
    assert run("cache", "inspect", cache).stdout == f"{cache} holds no pages\n"
    assert generate(run, tiny_folder, "--cache-dir", cache)[1] == 0


def test_a_damaged_index_is_listed(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    generate(run, tiny_folder, "--cache-dir", tmp_path)
    (index,) = tmp_path.glob("*/index.sqlite3")
    index.write_bytes(b"nothing")
    assert "a damaged index, 20,480 bytes" in run("cache", "inspect", tmp_path).stdout


@pytest.mark.parametrize("command", ["inspect", "clear"])
def test_a_folder_that_is_none(run: Run, command: str, tmp_path: Path) -> None:
    assert_one_sentence(run("cache", command, tmp_path / "none"), "cache folder: expected a folder, got", "none")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--host-cache", "12"), ("--host-cache", "12")),
        (("--swap-dir", "/proc/x"), ("swap_dir: expected a folder that can be written", "/proc/x")),
        (("--cache-dir", "/proc/x"), ("cache_dir: expected a folder that can be written",)),
        (("--swap-dir", "SELF", "--cache-dir", "SELF"), ("swap_dir and cache_dir: expected two folders",)),
    ],
)
def test_bad_options(run: Run, tiny_folder: Path, tmp_path: Path, options: tuple[str, ...], parts: tuple[str]) -> None:
    named = [str(tmp_path) if option == "SELF" else option for option in options]
    assert_one_sentence(run("generate", tiny_folder, "-p", "abc", *named), *parts)


def test_the_end_of_the_pool(run: Run, tiny_folder: Path) -> None:
    options = ("--page-tokens", "16", "--cache-tokens", "32", "--json")
    ended = run("generate", tiny_folder, "-p", "abcdefgh" * 2, "--max-tokens", "100", *options)
    record = json.loads(ended.stdout)
    assert (record["finish_reason"], record["prompt_tokens"] + record["completion_tokens"]) == ("length", 33)
    refused = run("generate", tiny_folder, "-p", PROMPT, *options)
    assert_one_sentence(refused, "prompt: expected at most 32 tokens (the page pool), got 80 tokens.", "cache_tokens")
