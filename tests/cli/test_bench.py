"""`latentkv bench`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import Run, assert_one_sentence
from support.tiny_models import FAMILIES, save_model

BRIEF = ("--repeats", "1", "--tokens", "2")


def test_bench_model_prints_one_json_object(run: Run, tiny_folder: Path) -> None:
    result = run("bench", "model", tiny_folder, *BRIEF, "--only", "empty", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["model"] == str(tiny_folder)
    assert [case["case"] for case in record["cases"]] == ["decode at empty"]
    assert record["threads"] == 1
    assert "[1/2] decode at empty, latentkv" in result.stderr


def test_bench_model_prints_a_table_beside_transformers(run: Run, tiny_folder: Path) -> None:
    result = run("bench", "model", tiny_folder, *BRIEF, "--only", "empty", "--against", "transformers")
    assert result.exit_code == 0
    assert "transformers bfloat16" in result.stdout
    assert "x fastest other" in result.stdout


def test_contexts_beyond_the_models_are_left_out(run: Run, tiny_folder: Path) -> None:
    record = json.loads(run("bench", "model", tiny_folder, *BRIEF, "--only", "decode", "--json").stdout)
    assert [case["case"] for case in record["cases"]] == ["decode at empty"]


def test_an_unknown_case_is_refused_before_anything_is_loaded(run: Run) -> None:
    assert_one_sentence(run("bench", "model", "--only", "nonsense"), "prefill 512")


def test_bench_model_profiles_a_decode_step(run: Run, tmp_path: Path) -> None:
    save_model(FAMILIES[0], tmp_path / "model")
    result = run("bench", "model", tmp_path / "model", "--profile", "--tokens", "4", "--json")
    assert result.exit_code == 0
    assert {"weights", "attention", "Python"} <= {part["name"] for part in json.loads(result.stdout)["parts"]}
    assert "a decode step at batch 1" in run("bench", "model", tmp_path / "model", "--profile", "--tokens", "4").stdout
    assert_one_sentence(run("bench", "model", "--profile", "--only", "decode"), "neither")


def test_bench_attention_and_linear_tell_shares_of_the_ceilings(run: Run) -> None:
    brief = ("--repeats", "1", "--threads", "1")
    attention = run("bench", "attention", *brief, "--only", "decode H=1 context=4096 batch=1 ", "--json")
    linear = run("bench", "linear", *brief, "--only", "torch", "--cpu-time", "--json")
    for result, count in ((attention, 1), (linear, 8)):
        assert result.exit_code == 0
        record = json.loads(result.stdout)
        assert len(record["cases"]) == count
        assert record["ceilings"]["1"]["gflops"] > 0
        assert all(0 < row["share_of_fma"] <= row["best_share_of_fma"] for row in record["cases"])
    assert "of reading" in run("bench", "linear", *brief, "--only", "torch").stdout


def test_bench_kernels_refuse_what_they_cannot_do(run: Run) -> None:
    assert_one_sentence(run("bench", "linear", "--threads", "2", "--cpu-time"), "--threads 1")
    assert_one_sentence(run("bench", "linear", "--only", "nonsense"), "part of a case's name")
    assert_one_sentence(run("bench", "linear", "--isa", "mmx"), "instruction set")
