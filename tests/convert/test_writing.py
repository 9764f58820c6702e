"""Files that we write are what the safetensors package reads, aligned, the same every time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from latentkv.convert.writing import ALIGNMENT_BYTES, write_safetensors, write_shards
from latentkv.models.weights import SafetensorsSource

TENSORS = {
    "f32": torch.randn(5, 16),
    "bf16": torch.randn(3, 7).bfloat16(),
    "f16": torch.randn(64).half(),
    "i8": torch.arange(-64, 64, dtype=torch.int8).view(2, 64),
    "u8": torch.arange(13, dtype=torch.uint8),
    "i64": torch.tensor([7, -9]),
    "empty": torch.empty(0, 4),
    "transposed": torch.randn(16, 32).t(),
    "slice": torch.randn(8, 32)[2:6],
}


def test_both_readers_read_what_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", TENSORS)
    theirs, ours = load_file(tmp_path / "one.safetensors"), SafetensorsSource(tmp_path / "one.safetensors")
    assert theirs.keys() == ours.names() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours.get(name, dtype=None), tensor)


def test_tensors_of_whole_lines_begin_on_one(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", TENSORS)
    ours = SafetensorsSource(tmp_path / "one.safetensors")
    for name, tensor in TENSORS.items():
        if tensor.numel() and tensor.nbytes % ALIGNMENT_BYTES == 0:
            assert ours.get(name, dtype=None).data_ptr() % ALIGNMENT_BYTES == 0, name


def test_the_same_tensors_make_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", TENSORS)
    write_safetensors(tmp_path / "two.safetensors", dict(reversed(TENSORS.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_what_belongs_together_stays_in_one_shard(tmp_path: Path) -> None:
    pieces = [{f"{index}.codes": torch.zeros(100), f"{index}.scales": torch.zeros(10)} for index in range(7)]
    write_shards(tmp_path, pieces, shard_bytes=1000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        names = load_file(file).keys()
        assert {name.rpartition(".")[0] + ".scales" for name in names} <= names
    assert SafetensorsSource(tmp_path).names() == {name for piece in pieces for name in piece}
