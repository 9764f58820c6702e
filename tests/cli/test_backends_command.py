"""`latentkv backends` and `latentkv replay`: what they tell, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentkv.attend import request_for
from latentkv.backends.agreement import compare
from latentkv.backends.call import Call
from latentkv.backends.dumps import METADATA_KEY, DumpFolder
from latentkv.backends.explain import ISA_NEEDS
from latentkv.backends.isa import available_isas, cpu_flags
from latentkv.backends.registry import find_backend
from latentkv.cache.layout import mla_row
from support.command_line import Run, assert_one_sentence
from support.failing_backend import FailingBackend
from support.hostile import hostile_case

SIZES = {"kv_lora_rank": 64, "qk_rope_head_dim": 16}


def test_every_backend_is_listed_with_what_it_lacks(run: Run, tiny_folder: Path) -> None:
    result = run("backends", tiny_folder, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    rows = {one["name"]: one for one in report["candidates"]}
    assert list(rows) == ["native", *(f"native:{isa}" for isa in ISA_NEEDS), "portable"]
    assert rows["portable"]["ok"]
    assert all(one["ok"] != bool(one["reason"]) for one in rows.values())
    assert {one["path"].split(":")[0] for one in report["choices"]} == {
        "native" if rows["native"]["ok"] else "portable"
    }


def test_the_needs_of_instruction_sets_are_those_of_the_extension() -> None:
    flags = set(cpu_flags())
    for isa in available_isas():
        assert set(ISA_NEEDS.get(isa, ())) <= flags
    lacking = {isa for isa, needs in ISA_NEEDS.items() if not set(needs) <= flags}
    assert not lacking & set(available_isas())


@pytest.mark.parametrize("format", ["int8", "int6", "int4", "fp8"])
def test_keys_and_values_in_codes_have_a_kernel(run: Run, tiny_folder: Path, format: str) -> None:
    report = json.loads(run("backends", tiny_folder, "--format", format, "--attention", "gqa", "--json").stdout)
    native = next(one for one in report["candidates"] if one["name"] == "native")
    assert native["ok"] == bool(available_isas())
    chosen = {one["path"].split(":")[0] for one in report["choices"]}
    assert chosen == {"native" if native["ok"] else "portable"}


def test_a_plug_in_comes_first_and_a_wrong_one_is_refused(run: Run, tiny_folder: Path) -> None:
    plugin = "support.failing_backend:make"
    report = json.loads(run("backends", tiny_folder, "--backend-plugin", plugin, "--json").stdout)
    assert report["candidates"][0]["name"] == "failing"
    for wrong in ("support.failing_backend", "no_such_module:make", "support.failing_backend:none", "json:dumps"):
        assert_one_sentence(run("backends", tiny_folder, "--backend-plugin", wrong), "backend plug-in")


def make_call(format: str = "bf16", query_dtype: torch.dtype = torch.float32) -> Call:
    from latentkv.ops.absorb import UpProjection

    case = hostile_case(mla_row(format, **SIZES), [(1, 70), (3, 40), (0, 5), (1, 1)], page_tokens=16)
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(case.batch.num_tokens, 4, 32 + 16, generator=generator).to(query_dtype)
    up = UpProjection(*(torch.randn(4, width, 64, generator=generator) / 8 for width in (32, 24)))
    return Call(request_for(query, case.layer, case.batch, up=up), query, case.layer, case.batch, 0.1, up)


def write_dump(folder: Path, call: Call, *, max_bytes: int = 1 << 28) -> Path | None:
    wrong = FailingBackend("wrong", every=1, inside=find_backend("portable"))
    used, expected = call.run(wrong), call.run(find_backend("portable"))
    agreement = compare(used, expected, format=call.request.format)
    assert not agreement.ok
    return DumpFolder(folder, max_bytes=max_bytes).write(call, ("failing", used), ("portable", expected), agreement)


@pytest.mark.parametrize("format", ["f32", "bf16", "f16", "fp8", "int8", "int6", "int4"])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
def test_a_dump_runs_again_on_every_instruction_set(
    run: Run, tmp_path: Path, format: str, query_dtype: torch.dtype
) -> None:
    path = write_dump(tmp_path, make_call(format, query_dtype))
    names = ["portable", *(f"native:{isa}" for isa in available_isas())]
    result = run("replay", path, "--json", *(argument for name in names for argument in ("--backend", name)))
    record = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [one["backend"] for one in record["runs"]] == names
    assert all(one["ok"] and not one["used"]["ok"] for one in record["runs"])
    assert not find_nan(load_file(path)["rows"]), "what no token of these sequences wrote is not in the file"


def find_nan(rows: torch.Tensor) -> bool:
    return bool(rows.isnan().any()) if rows.is_floating_point() else bool((rows[:, -1] == 255).all())


def test_the_wrong_backend_is_wrong_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dump(tmp_path, make_call())
    monkeypatch.setenv("FAILING_BACKEND", "wrong")
    monkeypatch.setenv("FAILING_EVERY", "1")
    plugin = ("--backend-plugin", "support.failing_backend:make", "--backend", "failing")
    result = run("replay", path, *plugin)
    assert result.exit_code == 3
    assert "differs" in result.stdout
    monkeypatch.setenv("FAILING_BACKEND", "raise")
    result = run("replay", path, *plugin)
    assert result.exit_code == 3
    assert "RuntimeError: made to fail" in result.stdout


def test_a_large_call_is_written_with_its_worst_sequence_alone(run: Run, tmp_path: Path) -> None:
    path = write_dump(tmp_path, make_call(), max_bytes=80_000)
    result = run("replay", path, "--json")
    about = json.loads(result.stdout)["about"]
    assert about["one_sequence_of_several"]
    assert load_file(path)["context_lens"].numel() == 1
    assert result.exit_code == 0
    assert write_dump(tmp_path, make_call(), max_bytes=10) is None, "the folder is full"


def test_files_that_are_no_dump_are_refused(run: Run, tmp_path: Path) -> None:
    path = write_dump(tmp_path, make_call())
    assert_one_sentence(run("replay", tmp_path / "absent.safetensors"), "absent.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    assert_one_sentence(run("replay", cut), "damaged")
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, str(other))
    assert_one_sentence(run("replay", other), "not a dump of an attention call")
    tensors = load_file(path)
    for name in ("query", "table", "out.1", "w_uk"):
        save_file({key: value for key, value in tensors.items() if key != name}, str(other), metadata=about_of(path))
        assert_one_sentence(run("replay", other), str(other))
    save_file(tensors | {"table": tensors["table"] + 1000}, str(other), metadata=about_of(path))
    assert_one_sentence(run("replay", other), "pages below")
    assert_one_sentence(run("replay", path, "--backend", "flash"), "backend: expected auto or one of")


def about_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {METADATA_KEY: file.metadata()[METADATA_KEY]}
