"""The part of `latentkv plan` about speed: devices, this machine, the roofline's file, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentkv.backends.isa import native_missing
from latentkv.cli import plan_speed
from support.command_line import Run, assert_one_sentence

V3 = "deepseek-ai/DeepSeek-V3"


def test_ceilings_tell_bounds_and_crossings(run: Run) -> None:
    text = run("plan", V3, "--context", "32k", "--users", "64", "--device", "h200", "--device", "9654").stdout
    for expected in (
        "on NVIDIA H200 SXM: 64 x 32,768 tokens",
        "MLA, head form",
        "GQA-8 attends faster than MLA's latent form from 4 new tokens",
        "GQA-8 always attends faster than MLA's latent form here",
    ):
        assert expected in text


def test_json_holds_the_same(run: Run) -> None:
    whole = json.loads(run("plan", V3, "--device", "h800", "--queries", "2", "--weights", "none", "--json").stdout)
    (record,) = whole["speed"]
    own = record["ways"][0]
    assert (record["queries"], record["weights"], own["weights_bound"]) == (2, None, None)
    assert own["flop_per_byte"] == pytest.approx(2 * 241.8, rel=1e-3)
    assert own["attention_bound"] == "arithmetic"


@pytest.mark.skipif(bool(native_missing()), reason="needs the native extension")
def test_this_machine_is_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_speed, "SAMPLES", 1)
    whole = json.loads(run("plan", "SmolLM2-135M", "--this-machine", "--weights", "int4", "--json").stdout)
    (record,) = whole["speed"]
    assert record["fp32_gflops"] > 0
    assert record["read_gb_per_s"] > 0
    assert [each["context_tokens"] for each in record["predicted"]] == [128, 1024, 4096]


def test_the_roofline_is_drawn(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "roofline.svg"
    assert run("plan", V3, "--device", "h200", "--roofline", file).exit_code == 0
    assert "<svg" in file.read_text()


def test_devices_are_listed(run: Run) -> None:
    text = run("plan", V3, "--device", "list").stdout
    assert "AMD Instinct MI300X" in text
    assert "461 GB/s" in text  # GB/s of an EPYC 9654, computed from its channels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "H100"), "NVIDIA H100 SXM or NVIDIA H100 PCIe"),
        (("--roofline", "x.png"), "--device"),
        (("--device", "h200", "--csv"), "--csv"),
        (("--device", "h200", "--queries", "0"), "queries"),
        (("--device", "h200", "--roofline", "x.txt"), "ending in"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, arguments: tuple[str, ...], words: str) -> None:
    assert_one_sentence(run("plan", V3, *arguments), words)


def test_hybrids_are_refused_with_the_reason(run: Run) -> None:
    assert_one_sentence(run("plan", "openai/gpt-oss-20b", "--device", "h200"), "do not all attend alike")
