"""Every GGUF quantisation that is kept as it is: the same float32 bits as the gguf package's own decoding."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from latentkv.models.weights import GGUFSource
from latentkv.models.weights.gguf_codes import LAYOUTS
from support.tiny_gguf import write_gguf

NAME = "blk.0.ffn_down.weight"
OURS = "model.layers.0.mlp.down_proj.weight"
# Where in a block its float16 numbers stand: random bytes there could be NaN.
HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2)}
HALVES |= {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, blocks: int) -> np.ndarray:
    """Any bytes, so that every bit of every code occurs; finite scales."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[kind.name]:
        raw[..., at : at + 2] = generator.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, blocks * size)


def write_blocks(path: Path, kind: gguf.GGMLQuantizationType, raw: np.ndarray) -> GGUFSource:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(NAME, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFSource(path)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_the_same_bits_as_the_gguf_packages_decoding(
    kind: gguf.GGMLQuantizationType, rows: int, tmp_path: Path
) -> None:
    raw = random_blocks(kind, rows, 3)
    source = write_blocks(tmp_path / "m.gguf", kind, raw)
    kept = source.grouped(OURS)
    assert kept is not None
    assert kept.format == LAYOUTS[kind].format
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    assert torch.equal(kept.dequantized().view(torch.int32), expected.view(torch.int32))
    assert kept.shape == source.shape(OURS) == tuple(expected.shape)


def test_long_matrices_are_packed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentkv.models.weights.gguf_source._CHUNK_VALUES", 96 * 20)
    kind = gguf.GGMLQuantizationType.Q4_1
    raw = random_blocks(kind, 75, 3)
    kept = write_blocks(tmp_path / "m.gguf", kind, raw).grouped(OURS)
    assert kept is not None
    assert torch.equal(kept.dequantized(), torch.from_numpy(gguf.quants.dequantize(raw, kind)))


def test_four_bits_stay_four_bits(tmp_path: Path) -> None:
    raw = random_blocks(gguf.GGMLQuantizationType.Q4_1, 16, 4)
    kept = write_blocks(tmp_path / "m.gguf", gguf.GGMLQuantizationType.Q4_1, raw).grouped(OURS)
    assert kept is not None
    assert kept.size_bytes == raw.size


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_left_to_the_plain_way(tmp_path: Path, bad: float) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    raw = random_blocks(kind, 4, 2)
    raw[1, 0:2] = np.array([bad], dtype=np.float16).view(np.uint8)
    source = write_blocks(tmp_path / "m.gguf", kind, raw)
    assert source.grouped(OURS) is None
    assert not source.get(OURS, dtype=torch.float32)[1].isfinite().all()


def test_floats_and_vectors_are_not_grouped(tmp_path: Path) -> None:
    tensors = {NAME: np.ones((4, 32), np.float32), "blk.0.ffn_norm.weight": np.ones(32, np.float32)}
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors=tensors))
    assert source.grouped(OURS) is None
    assert source.grouped("model.layers.0.post_attention_layernorm.weight") is None
