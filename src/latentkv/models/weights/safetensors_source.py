"""Tensors of safetensors files: one file, or shards listed in `model.safetensors.index.json`.

The header is read and checked here rather than by the safetensors package, because every way it can be damaged has to
end in a sentence with the file's name and byte counts, and because the data must be mapped and not read: a checkpoint
may be larger than memory. It does not know which tensors a model needs.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentkv.errors import CheckpointError, UnsupportedModelError, sentence
from latentkv.models.weights.mapping import map_file, view
from latentkv.models.weights.source import Storage

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# The format's own limit on the header, which keeps a damaged length from asking for all of memory.
MAX_HEADER_BYTES = 100_000_000

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FUSED_EXPERTS = re.compile(r"^(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies in its mapped file."""

    buffer: mmap.mmap
    offset_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class SafetensorsSource:
    """A WeightSource over a folder with safetensors files, or over one such file.

    Raises CheckpointError for damaged or missing files and an index that names absent tensors, UnsupportedModelError
    for float8 weights with scales and other storages it does not decode.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._entries: dict[str, _Entry] = {}
        for file, listed in _files(self._path).items():
            entries = _read_header(file)
            absent = sorted(listed - entries.keys())
            if absent:
                got = f"{len(absent)} of them absent, the first is {absent[0]}"
                raise CheckpointError(sentence(str(file), expected=f"the {len(listed)} indexed tensors", got=got))
            self._entries.update({name: entries[name] for name in listed} if listed else entries)
        self._entries = {out: entry for name, entry in self._entries.items() for out, entry in _unstack(name, entry)}

    @property
    def description(self) -> str:
        """The file or folder, for error messages."""
        return str(self._path)

    def names(self) -> frozenset[str]:
        """Every tensor, with stacked experts under one name per expert."""
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header."""
        return self._entry(name).shape

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor in `dtype` (None: as stored), mapped without a copy when the dtype matches."""
        entry = self._entry(name)
        if dtype is not None and dtype.is_floating_point and not entry.dtype.is_floating_point:
            stored = str(entry.dtype).removeprefix("torch.")
            raise UnsupportedModelError(
                sentence(
                    f"{self._path}: {name}",
                    expected="float32, float16 or bfloat16 weights",
                    got=f"{stored} (a quantised checkpoint)",
                    remedy="Use the unquantised checkpoint or a GGUF file.",
                )
            )
        tensor = view(entry.buffer, offset_bytes=entry.offset_bytes, shape=entry.shape, dtype=entry.dtype)
        return tensor if dtype is None else tensor.to(dtype)

    def grouped(self, name: str) -> None:
        """These files hold no whole numbers in groups."""
        self._entry(name)

    def storage(self, name: str) -> Storage:
        """Mapped, in the dtype of the header."""
        return Storage(self._entry(name).dtype, is_mapped=True)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(sentence(str(self._path), expected=f"a tensor {name}", got="none")) from None


def _files(path: Path) -> dict[Path, frozenset[str]]:
    """The files to read, each with the tensor names the index promises in it (empty: no index)."""
    if path.is_file():
        return {path: frozenset()}
    index = path / INDEX_NAME
    if index.is_file():
        return _indexed_files(index)
    single = path / SINGLE_NAME
    if single.is_file():
        return {single: frozenset()}
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: frozenset()}
    got = f"{len(found)} .safetensors files and no index" if found else "no .safetensors file"
    raise CheckpointError(sentence(str(path), expected=f"{SINGLE_NAME} or {INDEX_NAME}", got=got))


def _indexed_files(index: Path) -> dict[Path, frozenset[str]]:
    """The shards of an index with their tensor names. A shard outside the folder is refused."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        pairs = [(str(name), str(file)) for name, file in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            sentence(str(index), expected='JSON with a "weight_map"', got="something else", remedy="Download it again.")
        ) from None
    shards: dict[Path, set[str]] = {}
    for name, file in pairs:
        if Path(file).name != file:
            raise CheckpointError(sentence(str(index), expected="shards in the same folder", got=repr(file)))
        shards.setdefault(index.parent / file, set()).add(name)
    absent = sorted(shard.name for shard in shards if not shard.is_file())
    if absent or not shards:
        got = f"{len(absent)} missing: {', '.join(absent[:5])}"
        raise CheckpointError(
            sentence(str(index), expected=f"{len(shards)} shards", got=got, remedy="Download the missing files.")
        )
    return {shard: frozenset(names) for shard, names in shards.items()}


def _read_header(file: Path) -> dict[str, _Entry]:
    """Every tensor of one file, its place checked against the file's size."""
    buffer = map_file(file)
    size_bytes = len(buffer)
    if size_bytes < 8:
        raise _damaged(file, expected="at least 8 bytes", got=f"{size_bytes} bytes")
    header_bytes = int.from_bytes(buffer[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise _damaged(file, expected=f"a header of at most {MAX_HEADER_BYTES} bytes", got=f"{header_bytes} bytes")
    data_start = 8 + header_bytes
    if data_start > size_bytes:
        raise _damaged(file, expected=f"a header of {header_bytes} bytes", got=f"a file of {size_bytes} bytes")
    try:
        header = json.loads(buffer[8:data_start])
    except (ValueError, RecursionError):
        raise _damaged(file, expected="a JSON header", got="something else") from None
    if not isinstance(header, dict):
        raise _damaged(file, expected="a JSON object as header", got=type(header).__name__)
    header.pop("__metadata__", None)
    entries = {name: _entry(file, buffer, data_start, name, record) for name, record in header.items()}
    _check_extent(file, entries, data_start=data_start, size_bytes=size_bytes)
    return entries


def _entry(file: Path, buffer: mmap.mmap, data_start: int, name: str, record: Any) -> _Entry:
    match record:
        case {"dtype": str(stored), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            pass
        case _:
            raise _damaged(file, expected=f"dtype, shape and data_offsets of {name}", got=repr(record)[:80])
    dtype = _dtype(file, name, stored)
    wanted = prod(shape) * dtype.itemsize
    if end - begin != wanted or begin < 0:
        raise _damaged(file, expected=f"{wanted} bytes for {name} {shape} {stored}", got=f"bytes {begin} to {end}")
    return _Entry(buffer=buffer, offset_bytes=data_start + begin, shape=tuple(shape), dtype=dtype)


def _dtype(file: Path, name: str, stored: str) -> torch.dtype:
    if stored in _DTYPES and not name.endswith("_scale_inv"):
        return _DTYPES[stored]
    raise UnsupportedModelError(
        sentence(
            f"{file}: {name}",
            expected="float32, float16 or bfloat16 weights",
            got="float8 weights with scales" if stored.startswith("F8") or stored in _DTYPES else stored,
            remedy="Use a bfloat16 checkpoint or a GGUF file of the same model.",
        )
    )


def _check_extent(file: Path, entries: Mapping[str, _Entry], *, data_start: int, size_bytes: int) -> None:
    """Tensors lie end to end from the header to the end of the file: anything else is a damaged or truncated file."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset_bytes, prod(item[1].shape))):
        if entry.offset_bytes != position:
            got = f"byte {entry.offset_bytes} (overlap or gap)"
            raise _damaged(file, expected=f"{name} to begin at byte {position}", got=got)
        position += prod(entry.shape) * entry.dtype.itemsize
    if position != size_bytes:
        raise _damaged(file, expected=f"{position} bytes", got=f"{size_bytes} bytes")


def _unstack(name: str, entry: _Entry) -> list[tuple[str, _Entry]]:
    """One entry per expert of a stacked tensor: gate_up_proj [E, 2I, hidden], down_proj [E, hidden, I]."""
    match = _FUSED_EXPERTS.match(name)
    if match is None or len(entry.shape) != 3:
        return [(name, entry)]
    prefix, kind = match.groups()
    experts, rows, columns = entry.shape
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    part_rows = rows // len(parts)
    part_bytes = part_rows * columns * entry.dtype.itemsize
    pieces = []
    for index in range(experts * len(parts)):
        piece = _Entry(entry.buffer, entry.offset_bytes + index * part_bytes, (part_rows, columns), entry.dtype)
        pieces.append((f"{prefix}.{index // len(parts)}.{parts[index % len(parts)]}.weight", piece))
    return pieces


def _damaged(file: Path, *, expected: str, got: str) -> CheckpointError:
    remedy = "The file is damaged or incomplete: download it again."
    return CheckpointError(sentence(str(file), expected=expected, got=got, remedy=remedy))
