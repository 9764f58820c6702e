"""The header of a GGUF file: its metadata and where its tensors lie. It does not know what any of it means.

Parsed here and not by the gguf package's reader, which takes seconds for a large vocabulary and loops for ever on some
damaged lengths. Every count is checked against the bytes that are left before it is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from latentkv.errors import CheckpointError, UnsupportedModelError, sentence
from latentkv.models.weights.mapping import map_file

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
# struct codes by GGUF value type: u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One stored tensor: `shape` is outermost dimension first, as in torch; `offset_bytes` is from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset_bytes: int
    size_bytes: int


class GGUFFile:
    """A mapped GGUF file with its header read and checked.

    path: the file · metadata: key to int, float, bool, str or list of them · tensors: by GGUF name · buffer: the bytes
    Raises CheckpointError when the file is truncated or damaged, UnsupportedModelError for a split or big-endian file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.buffer = map_file(self.path)
        cursor = _Cursor(self.path, self.buffer)
        if cursor.take(4, "the magic") != b"GGUF":
            raise cursor.damaged(expected="a file that begins with GGUF", got=repr(bytes(self.buffer[:4])))
        version = cursor.number("I", "the version")
        if version not in _VERSIONS:
            raise cursor.damaged(expected="GGUF version 2 or 3 in little-endian order", got=f"version {version}")
        tensor_count = cursor.count("the number of tensors", least_bytes_each=24)
        value_count = cursor.count("the number of metadata values", least_bytes_each=13)
        self.metadata: Mapping[str, Any] = _read_metadata(cursor, value_count)
        self._refuse_split()
        self.tensors: Mapping[str, GGUFTensor] = _read_tensors(cursor, tensor_count, self._alignment(cursor))

    def _refuse_split(self) -> None:
        parts = self.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModelError(
                sentence(
                    str(self.path),
                    expected="one GGUF file",
                    got=f"the first of {parts} parts"
                    if self.metadata.get("split.no") == 0
                    else f"one of {parts} parts",
                    remedy="Join them with `llama-gguf-split --merge FIRST_PART OUTPUT`.",
                )
            )

    def _alignment(self, cursor: _Cursor) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise cursor.damaged(expected="general.alignment as a power of two", got=repr(alignment))
        return alignment


class _Cursor:
    """Reads forward through the header; every read past the end is a CheckpointError with the byte counts."""

    def __init__(self, path: Path, buffer: Any) -> None:
        self.path = path
        self.buffer = buffer
        self.size_bytes = len(buffer)
        self.position = 0

    def take(self, length_bytes: int, what: str) -> bytes:
        end = self.position + length_bytes
        if end > self.size_bytes:
            got = f"a file of {self.size_bytes} bytes"
            raise self.damaged(expected=f"{what} up to byte {end}", got=got)
        piece: bytes = self.buffer[self.position : end]
        self.position = end
        return piece

    def number(self, code: str, what: str) -> Any:
        """One little-endian value of struct code `code`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, what: str, *, least_bytes_each: int) -> int:
        """A 64-bit count of things that take at least `least_bytes_each` of the bytes that are left."""
        count: int = self.number("Q", what)
        if count * least_bytes_each > self.size_bytes - self.position:
            left = f"{self.size_bytes - self.position} bytes left in the file"
            raise self.damaged(expected=f"{what} to fit in the file", got=f"{count} with {left}")
        return count

    def text(self, what: str) -> str:
        length = self.count(f"the length of {what}", least_bytes_each=1)
        raw = self.take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(expected=f"{what} as UTF-8", got=repr(raw[:40])) from None

    def damaged(self, *, expected: str, got: str) -> CheckpointError:
        remedy = "The file is damaged or incomplete: download it again."
        return CheckpointError(sentence(str(self.path), expected=expected, got=got, remedy=remedy))


def _read_metadata(cursor: _Cursor, value_count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise cursor.damaged(expected="each metadata key once", got=f"{key} twice")
        kind = cursor.number("I", f"the type of {key}")
        metadata[key] = _read_array(cursor, key) if kind == _ARRAY else _read_value(cursor, kind, key)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text(key)
    if kind not in _SCALARS:
        raise cursor.damaged(expected=f"a known type for {key}", got=f"type {kind}")
    value = cursor.number(_SCALARS[kind], key)
    # The decimal number that was written (1e-05) rather than its float32 neighbour (9.99999975e-06).
    return float(str(np.float32(value))) if kind == _FLOAT32 else value


def _read_array(cursor: _Cursor, key: str) -> list[Any]:
    kind = cursor.number("I", f"the element type of {key}")
    if kind == _STRING:
        length = cursor.count(f"the length of {key}", least_bytes_each=8)
        return [cursor.text(key) for _ in range(length)]
    if kind not in _SCALARS:
        raise cursor.damaged(expected=f"an array of numbers or strings in {key}", got=f"element type {kind}")
    size = struct.calcsize(f"<{_SCALARS[kind]}")
    length = cursor.count(f"the length of {key}", least_bytes_each=size)
    raw = cursor.take(length * size, key)
    return list(struct.unpack(f"<{length}{_SCALARS[kind]}", raw))


def _read_tensors(cursor: _Cursor, tensor_count: int, alignment: int) -> dict[str, GGUFTensor]:
    records = [_read_tensor(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in records:
        if name in tensors:
            raise cursor.damaged(expected="each tensor once", got=f"{name} twice")
        per_group, group_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % per_group or offset % alignment:
            got = f"shape {list(shape)} at offset {offset}"
            raise cursor.damaged(expected=f"{name} in whole groups of {per_group} values, aligned", got=got)
        size = prod(shape) // per_group * group_bytes
        end = data_start + offset + size
        if end > cursor.size_bytes:
            got = f"a file of {cursor.size_bytes} bytes"
            raise cursor.damaged(expected=f"{name} {list(shape)} {kind.name} up to byte {end}", got=got)
        tensors[name] = GGUFTensor(name, shape, kind, data_start + offset, size)
    _check_overlap(cursor, tensors)
    return tensors


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.text("a tensor name")
    dimensions = cursor.number("I", f"the dimensions of {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(expected=f"1 to {_MAX_DIMENSIONS} dimensions for {name}", got=str(dimensions))
    shape = tuple(cursor.number("Q", f"the shape of {name}") for _ in range(dimensions))[::-1]
    code = cursor.number("I", f"the data type of {name}")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise cursor.damaged(
            expected=f"a data type of {name} that the gguf package knows", got=f"type {code}"
        ) from None
    return name, shape, kind, cursor.number("Q", f"the offset of {name}")


def _check_overlap(cursor: _Cursor, tensors: Mapping[str, GGUFTensor]) -> None:
    position = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset_bytes, tensor.size_bytes)):
        if tensor.offset_bytes < position:
            got = f"byte {tensor.offset_bytes}, inside another tensor"
            raise cursor.damaged(expected=f"{tensor.name} to begin at byte {position} or later", got=got)
        position = tensor.offset_bytes + tensor.size_bytes
