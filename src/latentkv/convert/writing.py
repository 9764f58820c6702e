"""Writes checkpoints: safetensors shards with an index, in a folder that appears only when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from latentkv.errors import OptionError, sentence

SHARD_BYTES = 4 * 2**30
# Kernels read mapped tensors where they lie: lines of the cache should begin where their vectors do.
ALIGNMENT_BYTES = 64
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def new_folder(output: str | Path) -> Path:
    """`output` as a path. Raises OptionError when something is there already."""
    target = Path(output)
    if target.exists():
        raise OptionError(
            sentence("output", expected="a folder that does not exist yet", got=str(target), remedy="Choose another.")
        )
    return target


@contextmanager
def complete_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it at the end, or is removed if anything goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_shards(folder: Path, pieces: Iterable[Mapping[str, Tensor]], *, shard_bytes: int | None = None) -> None:
    """Write tensors as `model.safetensors`, or as numbered shards with an index when they are many.

    pieces: tensors that belong into one file, one group after the other; at most about `shard_bytes` (default
    SHARD_BYTES) of them are held at a time
    """
    limit_bytes = SHARD_BYTES if shard_bytes is None else shard_bytes
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    for piece in pieces:
        if shard and _size_bytes(shard) + _size_bytes(piece) > limit_bytes:
            _write_shard(folder, shards, shard)
            shard = {}
        shard |= piece
    _write_shard(folder, shards, shard)
    _name_shards(folder, shards)


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file. Tensors lie end to end, those first whose sizes keep the next one aligned."""
    # Names decide among equals, so that the same tensors make the same bytes.
    names = sorted(
        tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT_BYTES != 0, -tensors[name].itemsize, name)
    )
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    with file.open("xb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            _write_data(stream, tensors[name])
        stream.flush()
        # The rename that follows must not become durable before the data it promises.
        os.fsync(stream.fileno())


def _write_data(stream: BinaryIO, tensor: Tensor) -> None:
    if tensor.numel():
        stream.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _size_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _write_shard(folder: Path, shards: list[list[str]], shard: Mapping[str, Tensor]) -> None:
    write_safetensors(folder / _shard_name(len(shards)), shard)
    shards.append(list(shard))


def _shard_name(index: int) -> str:
    return f"shard-{index}.safetensors"


def _name_shards(folder: Path, shards: list[list[str]]) -> None:
    """Give the files the names that Hugging Face checkpoints have, with an index when there are several."""
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        final = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        (folder / _shard_name(index)).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n")
