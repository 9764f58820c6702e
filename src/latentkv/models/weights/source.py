"""What the model code may ask of a checkpoint: names, shapes, tensors; never which file format they are in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentkv.ops.quantized import GroupedWeight


@dataclass(frozen=True, slots=True)
class Storage:
    """How a tensor is stored, known from headers alone.

    dtype:         of `get(name, dtype=None)`
    is_mapped:     that tensor is a view of the file: it takes memory only while the system keeps the pages
    grouped_bytes: memory of `grouped(name)`; None where that is None. It is mapped where `is_grouped_mapped`
    """

    dtype: torch.dtype
    is_mapped: bool
    grouped_bytes: int | None = None
    is_grouped_mapped: bool = False


class WeightSource(Protocol):
    """Tensors under the names of the original Hugging Face checkpoint (experts one by one, never stacked)."""

    @property
    def description(self) -> str:
        """The file or folder, for error messages."""

    def names(self) -> frozenset[str]:
        """Every tensor the checkpoint holds."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading its data. Raises CheckpointError for an unknown name."""

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor in `dtype`; None keeps the stored one (float32 for quantised data).

        A view of the mapped file, without a copy, when the dtype already matches: treat it as read only. Raises
        CheckpointError for an unknown name, UnsupportedModelError for a storage that cannot be decoded.
        """

    def grouped(self, name: str) -> GroupedWeight | None:
        """The matrix as whole numbers in groups, exactly as stored; None where it is not stored so."""

    def storage(self, name: str) -> Storage:
        """How the tensor is stored, without reading its data. Raises CheckpointError for an unknown name."""
