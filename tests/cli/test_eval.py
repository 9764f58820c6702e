"""`latentkv eval cache` on a tiny model: table, JSON, plot, and refusals before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentkv.evaluate.cache_quality import CacheQuality
from support.command_line import Run, assert_one_sentence

SMALL = (
    "--tokens",
    "60",
    "--window",
    "32",
    "--needles",
    "1",
    "--needle-tokens",
    "64",
    "--formats",
    "int8,int4-unrotated",
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("Rivers flow. " * 40)
    return file


def test_json(run: Run, tiny_folder: Path, text: Path) -> None:
    result = run("eval", "cache", tiny_folder, "--text", text, *SMALL, "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert [row["format"] for row in record["formats"]] == ["bf16", "int8", "int4-unrotated"]
    assert [row["tokens"] for row in record["formats"]] == [58] * 3
    assert record["formats"][0]["top1_agreement"] == 1
    assert record["options"]["window_tokens"] == 32


def test_table_and_plot(run: Run, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    result = run("eval", "cache", tiny_folder, "--text", text, *SMALL, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 0
    for word in ("int4-unrotated", "perplexity", "100.00%"):
        assert word in result.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_after_ctrl_c_what_was_measured_is_shown(
    run: Run, tiny_folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: CacheQuality, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheQuality, "run", interrupted)
    result = run("eval", "cache", tiny_folder, "--text", text, *SMALL)
    assert result.exit_code == 130
    assert "int4-unrotated" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--formats", "int5"), ("cache format", "int5", "int6")),
        (("--tokens", "1"), ("tokens", "2 or more")),
        (("--plot", "plot.txt"), ("--plot", "png")),
        (("--text", "missing.txt"), ("missing.txt",)),
    ],
)
def test_bad_options_are_one_sentence(run: Run, text: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_sentence(run("eval", "cache", "no-such-model", "--text", text, *arguments), *parts)


def test_texts_that_are_none(run: Run, tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert_one_sentence(run("eval", "cache", "--text", empty), "some text")
    assert_one_sentence(run("eval", "cache", "--text", binary), "UTF-8")
