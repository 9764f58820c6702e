"""Tensors of a GGUF file under Hugging Face names, dequantised one at a time. It changes no row order.

Rows of `llama` and `deepseek2` files are laid out for interleaved RoPE; the configuration says so (`rope_interleave`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from latentkv.errors import CheckpointError, UnsupportedModelError, sentence
from latentkv.models.weights.gguf_codes import LAYOUTS, packed_block_bytes
from latentkv.models.weights.gguf_file import GGUFFile, GGUFTensor
from latentkv.models.weights.gguf_names import (
    ROPE_TENSORS,
    SUPPORTED_ARCHITECTURES,
    expert_parts,
    plain_name,
    split_kv_b,
)
from latentkv.models.weights.mapping import view
from latentkv.models.weights.source import Storage
from latentkv.ops.quantized import GroupedWeight, joined, padded_rows

_STORED_AS_IS = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.I8: torch.int8,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I64: torch.int64,
}
# Values dequantised in one go: the float32 temporaries of the gguf package stay in the tens of MiB.
_CHUNK_VALUES = 1 << 21


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A tensor, or one matrix out of a stacked one, beginning at `offset_bytes` of the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class _SplitKvB:
    """kv_b_proj in two halves: keys [H, L, N] (transposed for the latent form) and values [H, V, L]."""

    keys: _Matrix
    values: _Matrix

    @property
    def shape(self) -> tuple[int, int]:
        heads, rank, nope = self.keys.shape
        return heads * (nope + self.values.shape[1]), rank


class GGUFSource:
    """A WeightSource over one GGUF file (architectures: gguf_names.SUPPORTED_ARCHITECTURES).

    Quantised tensors are decoded when asked for, one expert of a stack at a time; float tensors are mapped. Raises
    CheckpointError for a damaged file, UnsupportedModelError for another architecture or an unknown quantisation.
    """

    def __init__(self, file: GGUFFile | str | Path) -> None:
        self._file = file if isinstance(file, GGUFFile) else GGUFFile(file)
        check_architecture(self._file)
        self._entries: dict[str, _Matrix | _SplitKvB] = {}
        for name, entry in self._mapped():
            if name in self._entries:
                raise CheckpointError(
                    sentence(self.description, expected=f"one tensor for {name}", got="several (stacked and single?)")
                )
            self._entries[name] = entry

    @property
    def description(self) -> str:
        """The file, for error messages."""
        return str(self._file.path)

    def names(self) -> frozenset[str]:
        """Every tensor, with stacked experts under one name per expert."""
        return frozenset(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header."""
        return self._entry(name).shape

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor in `dtype`; None keeps float data as stored and decodes quantised data to float32."""
        entry = self._entry(name)
        if isinstance(entry, _Matrix):
            return self._read(name, entry, dtype)
        keys = self._read(name, entry.keys, dtype).transpose(1, 2)
        values = self._read(name, entry.values, keys.dtype)
        return torch.cat((keys, values), dim=1).view(entry.shape)

    def grouped(self, name: str) -> GroupedWeight | None:
        """The tensor's own codes, packed, where its quantisation is one of gguf_codes.LAYOUTS."""
        entry = self._entry(name)
        if not isinstance(entry, _Matrix) or entry.kind not in LAYOUTS or len(entry.shape) != 2:
            return None
        rows, columns = entry.shape
        packed = self._packed(entry)
        step = padded_rows(max(1, _CHUNK_VALUES // max(columns, 1)))
        pieces = [_pack(packed[first : first + step], entry.kind) for first in range(0, rows, step)]
        found = [piece for piece in pieces if piece is not None]
        # A damaged file may hold scales that are no numbers: the plain way of reading shows them to the model.
        return joined(found) if pieces and len(found) == len(pieces) else None

    def storage(self, name: str) -> Storage:
        """Float tensors are mapped; quantised ones are packed anew where gguf_codes.LAYOUTS can, else decoded."""
        entry = self._entry(name)
        if isinstance(entry, _SplitKvB):
            return Storage(_STORED_AS_IS.get(entry.keys.kind, torch.float32), is_mapped=False)
        if entry.kind not in LAYOUTS or len(entry.shape) != 2:
            return Storage(_STORED_AS_IS.get(entry.kind, torch.float32), is_mapped=entry.kind in _STORED_AS_IS)
        per_block, _ = GGML_QUANT_SIZES[entry.kind]
        packed_bytes = padded_rows(entry.shape[0]) * (entry.shape[1] // per_block) * packed_block_bytes(entry.kind)
        return Storage(torch.float32, is_mapped=False, grouped_bytes=packed_bytes)

    def _entry(self, name: str) -> _Matrix | _SplitKvB:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(sentence(self.description, expected=f"a tensor {name}", got="none")) from None

    def _mapped(self) -> Iterator[tuple[str, _Matrix | _SplitKvB]]:
        tensors = self._file.tensors
        for name, tensor in tensors.items():
            if name in ROPE_TENSORS:
                continue
            stacked = expert_parts(name)
            if stacked is not None and len(tensor.shape) == 3:
                yield from _unstack(tensor, *stacked)
            elif "attn_k_b" in name or "attn_v_b" in name:
                yield from self._joined_kv_b(name)
            else:
                yield plain_name(name), _whole(tensor)

    def _joined_kv_b(self, name: str) -> Iterator[tuple[str, _Matrix | _SplitKvB]]:
        """The kv_b_proj that `attn_k_b` and `attn_v_b` make up; nothing when the file also has the whole."""
        tensors = self._file.tensors
        if name.replace("attn_k_b", "attn_kv_b").replace("attn_v_b", "attn_kv_b") in tensors:
            return
        halves = split_kv_b(name)
        if halves is None:
            if name.replace("attn_v_b", "attn_k_b") not in tensors:
                yield name, _whole(tensors[name])
            return
        key_name, value_name, whole_name = halves
        keys, values = tensors[key_name], tensors.get(value_name)
        if values is None or not _halves_fit(keys.shape, values.shape):
            got = f"{list(keys.shape)} and {list(values.shape) if values else 'no values'}"
            expected = f"{key_name} [heads, rank, nope] and its attn_v_b [heads, v, rank]"
            raise CheckpointError(sentence(self.description, expected=expected, got=got))
        yield whole_name, _SplitKvB(_whole(keys), _whole(values))

    def _read(self, name: str, matrix: _Matrix, dtype: torch.dtype | None) -> Tensor:
        stored = _STORED_AS_IS.get(matrix.kind)
        if stored is None:
            return self._dequantize(name, matrix, dtype or torch.float32)
        tensor = view(self._file.buffer, offset_bytes=matrix.offset_bytes, shape=matrix.shape, dtype=stored)
        return tensor if dtype is None else tensor.to(dtype)

    def _dequantize(self, name: str, matrix: _Matrix, dtype: torch.dtype) -> Tensor:
        columns = matrix.shape[-1]
        packed = self._packed(matrix)
        rows = len(packed)
        out = torch.empty(rows, columns, dtype=dtype)
        step = max(1, _CHUNK_VALUES // max(columns, 1))
        # Damaged data may hold huge or NaN scales: that is the model's business to notice, not a reason to print.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for first in range(0, rows, step):
                out[first : first + step] = torch.from_numpy(self._decode(name, packed[first : first + step], matrix))
        return out.view(matrix.shape)

    def _packed(self, matrix: _Matrix) -> np.ndarray:
        """The stored bytes, one row for each of the matrix."""
        per_group, group_bytes = GGML_QUANT_SIZES[matrix.kind]
        rows, row_bytes = prod(matrix.shape[:-1]), matrix.shape[-1] // per_group * group_bytes
        raw = np.frombuffer(self._file.buffer, np.uint8, count=rows * row_bytes, offset=matrix.offset_bytes)
        return raw.reshape(rows, row_bytes)

    def _decode(self, name: str, packed: np.ndarray, matrix: _Matrix) -> np.ndarray:
        try:
            decoded: np.ndarray = dequantize(packed, matrix.kind)
        except NotImplementedError:
            raise UnsupportedModelError(
                sentence(
                    f"{self.description}: {name}",
                    expected="a quantisation that the gguf package can decode",
                    got=matrix.kind.name,
                    remedy="Use a Q4_K, Q6_K, Q8_0, F16 or BF16 file of the same model.",
                )
            ) from None
        return decoded


def check_architecture(file: GGUFFile) -> str:
    """The file's architecture name. Raises UnsupportedModelError unless it is one of SUPPORTED_ARCHITECTURES."""
    architecture = file.metadata.get("general.architecture")
    if isinstance(architecture, str) and architecture in SUPPORTED_ARCHITECTURES:
        return architecture
    raise UnsupportedModelError(
        sentence(
            f"{file.path}: general.architecture",
            expected=f"one of {', '.join(SUPPORTED_ARCHITECTURES)}",
            got=repr(architecture),
        )
    )


def _pack(packed: np.ndarray, kind: GGMLQuantizationType) -> GroupedWeight | None:
    """None when a scale or minimum is not finite."""
    layout, block_bytes = LAYOUTS[kind], GGML_QUANT_SIZES[kind][1]
    blocks = torch.from_numpy(packed).view(len(packed), -1, block_bytes)
    parts = layout.split(blocks)
    if not parts.scales.isfinite().all() or (parts.minima is not None and not parts.minima.isfinite().all()):
        return None
    return GroupedWeight.pack(parts.codes, parts.scales, parts.minima, format=layout.format, zero=layout.zero)


def _whole(tensor: GGUFTensor) -> _Matrix:
    return _Matrix(tensor.shape, tensor.kind, tensor.offset_bytes)


def _unstack(tensor: GGUFTensor, prefix: str, parts: tuple[str, ...]) -> Iterator[tuple[str, _Matrix]]:
    experts, rows, columns = tensor.shape
    part_rows = rows // len(parts)
    part_bytes = tensor.size_bytes // max(experts * len(parts), 1)
    for index in range(experts * len(parts)):
        matrix = _Matrix((part_rows, columns), tensor.kind, tensor.offset_bytes + index * part_bytes)
        yield f"{prefix}.{index // len(parts)}.{parts[index % len(parts)]}.weight", matrix


def _halves_fit(keys: tuple[int, ...], values: tuple[int, ...]) -> bool:
    return len(keys) == 3 and len(values) == 3 and keys[0] == values[0] and keys[1] == values[2]
