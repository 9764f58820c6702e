"""A checkpoint that `latentkv quantize` wrote (models/quantized_format.py), mapped into memory as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latentkv.errors import CheckpointError, sentence
from latentkv.models.quantized_format import CODES, MINIMA, SCALES, SHAPE, SUFFIXES
from latentkv.models.weights.safetensors_source import SafetensorsSource
from latentkv.models.weights.source import Storage
from latentkv.ops.quantized import GROUPS, PANEL_OUTPUTS, SCALE_DTYPES, GroupedWeight, padded_rows

# How many inputs of one output a packed step of four bytes holds, by the dtype of the codes.
_STEPS: dict[torch.dtype, tuple[Literal["int8", "int4"], int]] = {torch.int8: ("int8", 4), torch.uint8: ("int4", 8)}


class QuantizedSource:
    """A WeightSource whose grouped matrices are views of the file: nothing is packed or copied when they are loaded.

    Raises CheckpointError for damaged files, for a matrix of which a tensor is missing, and for tensors that do not
    fit each other.
    """

    def __init__(self, path: str | Path) -> None:
        self._files = SafetensorsSource(path)
        parts = {name for name in self._files.names() if name.endswith(SUFFIXES)}
        self._grouped = {name: self._open(name) for name in sorted({name.rpartition(".")[0] for name in parts})}
        self._names = (self._files.names() - parts) | self._grouped.keys()

    @property
    def description(self) -> str:
        """The file or folder, for error messages."""
        return self._files.description

    def names(self) -> frozenset[str]:
        """Every tensor and every quantised matrix."""
        return frozenset(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header; a matrix's from its own record."""
        return self._grouped[name].shape if name in self._grouped else self._files.shape(name)

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor in `dtype`, mapped where that matches; a quantised matrix is decoded (None: to float32)."""
        if name in self._grouped:
            return self._grouped[name].dequantized(dtype or torch.float32)
        return self._files.get(name, dtype=dtype)

    def grouped(self, name: str) -> GroupedWeight | None:
        """The matrix as it is stored; None for what is not quantised."""
        if name not in self._grouped:
            self._files.shape(name)
        return self._grouped.get(name)

    def storage(self, name: str) -> Storage:
        """Mapped; a quantised matrix only as it is stored."""
        if name in self._grouped:
            size_bytes = self._grouped[name].size_bytes
            return Storage(torch.float32, is_mapped=False, grouped_bytes=size_bytes, is_grouped_mapped=True)
        return self._files.storage(name)

    def _open(self, name: str) -> GroupedWeight:
        codes, scales = self._part(name, CODES), self._part(name, SCALES)
        format, step = _STEPS.get(codes.dtype, (None, 0))
        if format is None or scales.dtype not in SCALE_DTYPES:
            raise self._damaged(name, expected="int8 or uint8 codes and float scales", got=f"{codes.dtype} codes")
        minima = self._part(name, MINIMA) if format == "int4" else None
        shape = self._part(name, SHAPE)
        if shape.dtype is not torch.int64 or shape.shape != (2,):
            raise self._damaged(name, expected="its shape as two int64", got=f"{shape.dtype} {list(shape.shape)}")
        rows, columns = (int(size) for size in shape.tolist())
        groups = scales.shape[1] if scales.ndim == 3 else 0
        group = columns // groups if groups > 0 and columns % groups == 0 else 0
        panels = padded_rows(max(rows, 0)) // PANEL_OUTPUTS
        wanted = (panels, columns // step, PANEL_OUTPUTS, 4), (panels, groups, PANEL_OUTPUTS)
        values = (scales,) if minima is None else (scales, minima)
        if group not in GROUPS or codes.shape != wanted[0] or any(part.shape != wanted[1] for part in values):
            got = f"codes {list(codes.shape)} and values {[list(part.shape) for part in values]}"
            raise self._damaged(name, expected=f"codes and values of [{rows}, {columns}] in groups", got=got)
        return GroupedWeight(format, codes, scales, minima, (rows, columns), group)

    def _part(self, name: str, suffix: str) -> Tensor:
        if name + suffix not in self._files.names():
            raise self._damaged(name, expected=f"a tensor {name}{suffix}", got="none")
        return self._files.get(name + suffix, dtype=None)

    def _damaged(self, name: str, *, expected: str, got: str) -> CheckpointError:
        remedy = "The checkpoint is damaged or incomplete: quantise the original again."
        return CheckpointError(sentence(f"{self.description}: {name}", expected=expected, got=got, remedy=remedy))
