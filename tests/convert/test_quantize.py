"""Quantised checkpoints: what is written is what is loaded, errors are true, and a bad wish leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkv.convert import writing
from latentkv.convert.quantize import quantize_checkpoint, relative_error
from latentkv.errors import CheckpointError, ConfigError, LatentKVError, OptionError, UnsupportedModelError
from latentkv.models.load import load_model, open_checkpoint
from latentkv.models.quantized_format import ENTRY, VERSION
from latentkv.ops.quantized import GroupedFormat, GroupedWeight, quantize
from support.compare import assert_close
from support.paged import Sequences
from support.tiny_models import FAMILIES, VOCAB, Family, save_model

# The families of the parity tests in sizes that groups of 16 divide.
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "q_lora_rank": 32, "v_head_dim": 16}


def grouped_sizes(name: str) -> Family:
    family = next(family for family in FAMILIES if family.name == name)
    changed = {field: size for field, size in _SIZES.items() if family.fields.get(field) is not None}
    heads = {"head_dim": 16} if "kv_lora_rank" not in family.fields else {}
    return Family(name, family.classes, dict(family.fields) | changed | heads, family.saved_as)


DENSE = grouped_sizes("deepseek-v2 dense")
MOE = grouped_sizes("deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)")
GQA = grouped_sizes("llama (gqa, llama3 rope)")
TIED = grouped_sizes("youtu")
every_family = pytest.mark.parametrize("family", [DENSE, MOE, GQA, TIED], ids=lambda family: family.name)
both_formats = pytest.mark.parametrize("weights", ["int8", "int4"])


def logits(folder: Path, **options: str) -> Tensor:
    tokens = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(3))
    return Sequences(load_model(folder, dtype="float32", **options).model).run([(0, tokens)])[0]


@both_formats
@every_family
def test_a_quantised_checkpoint_computes_what_its_decoded_weights_compute(
    family: Family, weights: GroupedFormat, tmp_path: Path
) -> None:
    save_model(family, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights=weights, group=16)
    assert_close(
        logits(tmp_path / "rounded", weights="stored"),
        logits(tmp_path / "rounded", weights="dtype"),
        tolerance="logits",
    )


@both_formats
def test_codes_in_memory_are_the_codes_in_the_file_to_the_bit(weights: GroupedFormat, tmp_path: Path) -> None:
    save_model(MOE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights=weights, group=16)
    stored = load_file(tmp_path / "rounded" / "model.safetensors")
    original, reopened = (open_checkpoint(tmp_path / name).source for name in ("float", "rounded"))
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    grouped, again = reopened.grouped(name), quantize(original.get(name, dtype=None), format=weights, group=16)
    assert grouped is not None
    parts = (".codes", ".scales") if weights == "int8" else (".codes", ".scales", ".minima")
    assert len(grouped.tensors) == len(parts)
    for suffix, loaded, computed in zip(parts, grouped.tensors, again.tensors, strict=True):
        assert torch.equal(loaded, stored[name + suffix])
        assert torch.equal(loaded, computed)
    assert (grouped.format, grouped.shape, grouped.group) == (again.format, again.shape, again.group)


def test_the_model_computes_from_the_mapped_file(tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int4", group=16)
    source = open_checkpoint(tmp_path / "rounded").source
    first, second = (source.grouped("model.layers.0.mlp.up_proj.weight") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.codes.data_ptr() == second.codes.data_ptr()
    assert first.codes.data_ptr() % 64 == 0
    weight = load_model(tmp_path / "rounded", weights="stored").model.layers[0].feed_forward.weights.up.weight
    assert isinstance(weight, GroupedWeight)


@both_formats
def test_what_stays_as_it_is_stored(weights: GroupedFormat, tmp_path: Path) -> None:
    save_model(MOE, tmp_path / "float", dtype=torch.bfloat16)
    written = quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights=weights, group=16)
    formats = {error.name: error.format for error in written.errors}
    original, reopened = (open_checkpoint(tmp_path / name).source for name in ("float", "rounded"))
    assert original.names() == reopened.names()
    for name in original.names() - formats.keys():
        assert torch.equal(reopened.get(name, dtype=None), original.get(name, dtype=None)), name
    kinds = {name.removesuffix(".weight").rpartition(".")[2] for name in written.kept}
    assert kinds == {"gate", "kv_b_proj", "embed_tokens"}
    assert formats.pop("lm_head.weight") == "int8"
    assert set(formats.values()) == {weights}


def test_a_tied_embedding_is_the_head_and_becomes_int8(tmp_path: Path) -> None:
    save_model(TIED, tmp_path / "float")
    written = quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int4", group=16)
    assert {error.name: error.format for error in written.errors}["model.embed_tokens.weight"] == "int8"
    model = load_model(tmp_path / "rounded", weights="stored").model
    assert isinstance(model.embedding, GroupedWeight)
    assert model.head.weight is model.embedding


@both_formats
def test_the_error_that_is_told_is_that_of_the_decoded_weights(weights: GroupedFormat, tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    written = quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights=weights, group=16)
    original, reopened = (open_checkpoint(tmp_path / name).source for name in ("float", "rounded"))
    for error in written.errors:
        before, after = (source.get(error.name, dtype=torch.float64) for source in (original, reopened))
        assert error.relative == pytest.approx(float((before - after).norm() / before.norm()), rel=1e-5)
        # Half a step of a uniform rounding, over normal weights: 127 and 15 steps to a group's largest and its range.
        assert 0 < error.relative < (0.01 if error.format == "int8" else 0.1)
    assert 0 < relative_error(list(written.errors)) < 0.1
    sizes = [
        sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
        for folder in (tmp_path / "float", tmp_path / "rounded")
    ]
    assert (written.original_bytes, written.written_bytes) == tuple(sizes)


def test_rows_rounded_in_pieces_are_the_rows_rounded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(DENSE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "whole", weights="int4", group=16)
    monkeypatch.setattr("latentkv.convert.quantize._CHUNK_VALUES", 64 * 20)
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    quantize_checkpoint(tmp_path / "float", tmp_path / "pieces", weights="int4", group=16)
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 2
    whole, pieces = (open_checkpoint(tmp_path / name).source for name in ("whole", "pieces"))
    assert whole.names() == pieces.names()
    for name in whole.names():
        assert torch.equal(whole.get(name, dtype=None), pieces.get(name, dtype=None)), name


@pytest.mark.parametrize("group", [64, 128])
def test_a_group_that_does_not_divide_is_refused_with_the_tensor_and_what_would(group: int, tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    with pytest.raises(
        ConfigError, match=r"\.weight: expected a divisor of \d+ inputs, got none\. Use --group 16 or 32\."
    ):
        quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int4", group=group)
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_no_number_is_refused_by_name_and_nothing_is_written(
    number: float, name: str, tmp_path: Path
) -> None:
    save_model(DENSE, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[7] = number
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"{name}: expected finite numbers, got 1 of"):
        quantize_checkpoint(tmp_path / "float", tmp_path / "out" / "rounded", weights="int8", group=16)
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_beyond_the_scales_range_are_refused_by_name(tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] = 1e9
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: scales: expected finite"):
        quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int8", group=16)


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")

    def interrupt(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            tmp_path / "float", tmp_path / "out" / "rounded", weights="int8", group=16, progress=interrupt
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_wishes_are_refused(tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int8", group=16)
    bad: list[tuple[type[LatentKVError], str, dict[str, object]]] = [
        (OptionError, "does not exist yet", {"output": tmp_path / "rounded"}),
        (OptionError, "int8 or int4", {"weights": "int3"}),
        (OptionError, "one of 16, 32, 64, 128", {"group": 24}),
        (UnsupportedModelError, "rounding twice", {"model": tmp_path / "rounded"}),
    ]
    for kind, message, change in bad:
        wish = {"model": tmp_path / "float", "output": tmp_path / "new", "weights": "int8", "group": 16} | change
        with pytest.raises(kind, match=message):
            quantize_checkpoint(wish.pop("model"), wish.pop("output"), **wish)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "rounded"]


def test_another_version_is_refused(tmp_path: Path) -> None:
    save_model(DENSE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int8", group=16)
    path = tmp_path / "rounded" / "config.json"
    config = json.loads(path.read_text())
    assert config[ENTRY] == {"quant_method": "latentkv", "version": VERSION, "weights": "int8", "group": 16}
    config[ENTRY]["version"] = VERSION + 1
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"expected version {VERSION} of the format, got {VERSION + 1}"):
        load_model(tmp_path / "rounded")


@pytest.mark.parametrize("suffix", [".codes", ".scales", ".minima", ".shape"])
def test_a_missing_part_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    tensors = rounded_tensors(tmp_path)
    del tensors["model.layers.0.mlp.up_proj.weight" + suffix]
    save_file(tensors, tmp_path / "rounded" / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"a tensor model\.layers\.0\.mlp\.up_proj\.weight\{suffix}, got none"):
        load_model(tmp_path / "rounded")


@pytest.mark.parametrize("suffix", [".codes", ".scales", ".minima"])
def test_parts_that_do_not_fit_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    tensors = rounded_tensors(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight" + suffix
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, tmp_path / "rounded" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: expected codes and values of \[96, 64\] in groups"):
        load_model(tmp_path / "rounded")


def test_a_missing_matrix_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    tensors = rounded_tensors(tmp_path)
    file = tmp_path / "rounded" / "model.safetensors"
    whole = file.read_bytes()
    kept = {key: part for key, part in tensors.items() if not key.startswith("model.layers.0.mlp.up_proj.weight")}
    save_file(kept, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.layers\.0\.mlp\.up_proj\.weight"):
        load_model(tmp_path / "rounded")
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load_model(tmp_path / "rounded")


def rounded_tensors(tmp_path: Path) -> dict[str, Tensor]:
    save_model(DENSE, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "rounded", weights="int4", group=16)
    return load_file(tmp_path / "rounded" / "model.safetensors")
