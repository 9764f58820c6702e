"""Writes a checkpoint with its matrices as int8 or int4 in groups (models/quantized_format.py), and tells the error.

What stays as it is stored, and why:

    norms, biases        next to nothing in bytes, and every token passes them
    router (mlp.gate)    a small change sends a token to other experts
    kv_b_proj            attention multiplies it from both sides, in the latent and in the head form: groups along one
                         of them are across the other, and the kernels read it in floats
    embedding (untied)   only the rows of the tokens at hand are read, and those of a mapped file alone are in memory

The head, and with it a tied embedding, becomes int8 even where the rest becomes int4: its error goes straight into the
logits, and it is one matrix among many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from latentkv.convert.writing import complete_or_nothing, new_folder, write_shards
from latentkv.errors import CheckpointError, ConfigError, OptionError, UnsupportedModelError, sentence
from latentkv.models import quantized_format
from latentkv.models.load import open_checkpoint
from latentkv.models.weights import WeightSource
from latentkv.ops.quantized import GROUPS, GroupedFormat, GroupedWeight, joined, padded_rows, quantize

Progress = Callable[[int, int], None]
DEFAULT_GROUP = 32
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOAT = re.compile(r"(\.mlp\.gate|\.kv_b_proj)\.weight$")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
# Rows that are rounded at a time: float32 copies of a large head would take gigabytes.
_CHUNK_VALUES = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorError:
    """What rounding did to one matrix: |W - W'|² and |W|², sums over its elements."""

    name: str
    format: GroupedFormat
    squared_error: float
    squared_size: float

    @property
    def relative(self) -> float:
        """|W - W'| / |W|, Frobenius norms; 0 for a matrix of zeros."""
        return relative_error([self])

    @property
    def layer(self) -> int | None:
        """The layer's index; None for the head and a tied embedding."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Quantized:
    """A checkpoint that was written: where, its error matrix by matrix, and how many bytes of tensors became how many.

    kept: matrices that stayed floats
    """

    folder: Path
    errors: tuple[TensorError, ...]
    kept: tuple[str, ...]
    original_bytes: int
    written_bytes: int


def relative_error(errors: list[TensorError]) -> float:
    """|W - W'| / |W| of several matrices taken as one."""
    size = sum(error.squared_size for error in errors)
    return (sum(error.squared_error for error in errors) / size) ** 0.5 if size else 0.0


def quantize_checkpoint(
    model: str | Path | None,
    output: str | Path,
    *,
    weights: GroupedFormat,
    group: int = DEFAULT_GROUP,
    progress: Progress | None = None,
) -> Quantized:
    """Write `model` (a folder, `.gguf` file, hub id, or None for the default) with rounded matrices into `output`.

    group:    inputs that share a scale, 16, 32, 64 or 128
    progress: called with (tensors written, tensors in all)

    The folder appears only when it is complete. Raises what `Quantization` and `Quantization.write` raise.
    """
    return Quantization(model, output, weights=weights, group=group).write(progress)


def stored_tensors(name: str, weight: GroupedWeight) -> dict[str, Tensor]:
    """A quantised matrix as the file's tensors."""
    parts = {
        quantized_format.CODES: weight.codes,
        quantized_format.SCALES: weight.scales,
        quantized_format.MINIMA: weight.minima,
        quantized_format.SHAPE: torch.tensor(weight.shape, dtype=torch.int64),
    }
    return {name + suffix: part for suffix, part in parts.items() if part is not None}


class Quantization:
    """One checkpoint to be rounded: everything that can be refused without reading a weight is refused here.

    Raises OptionError for an output that exists and unknown options, UnsupportedModelError for a checkpoint that
    latentkv has quantised already, ConfigError naming a matrix that the group does not divide, and what opening the
    checkpoint raises.
    """

    def __init__(
        self, model: str | Path | None, output: str | Path, *, weights: GroupedFormat, group: int = DEFAULT_GROUP
    ) -> None:
        self._target = new_folder(output)
        if weights not in get_args(GroupedFormat):
            raise OptionError(sentence("weights", expected=" or ".join(get_args(GroupedFormat)), got=repr(weights)))
        if group not in GROUPS:
            raise OptionError(sentence("group", expected=f"one of {', '.join(map(str, GROUPS))}", got=group))
        self._checkpoint = checkpoint = open_checkpoint(model)
        if quantized_format.is_quantized(checkpoint.config):
            remedy = "Quantise the original: rounding twice adds both errors."
            raise UnsupportedModelError(
                sentence("model", expected="an unquantised checkpoint", got="a quantised one", remedy=remedy)
            )
        self._entry = quantized_format.entry(weights=weights, group=group)
        self._group = group
        self._source: WeightSource = checkpoint.source
        tied = bool(checkpoint.config.get("tie_word_embeddings"))
        # A tied checkpoint may carry a copy of its embedding as the head, which nobody reads.
        self._names = sorted(self._source.names() - ({_HEAD} if tied else set()))
        shapes = {name: self._source.shape(name) for name in self._names}
        found = {name: _format_of(name, shape, weights, tied=tied) for name, shape in shapes.items()}
        self._formats: dict[str, GroupedFormat] = {name: format for name, format in found.items() if format is not None}
        self._check_group({name: shapes[name][1] for name in self._formats})

    def write(self, progress: Progress | None = None) -> Quantized:
        """Round and write; `progress` is called with (tensors written, tensors in all).

        The folder appears only when it is complete. Raises CheckpointError naming a tensor with NaN or infinities.
        """
        written = _Count()
        with complete_or_nothing(self._target) as folder:
            config = self._checkpoint.config | {quantized_format.ENTRY: self._entry}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if self._checkpoint.tokenizer is not None:
                self._checkpoint.tokenizer.save(folder)
            write_shards(folder, self._tensors(written, progress))
        errors, kept = tuple(written.errors), tuple(written.kept)
        return Quantized(self._target, errors, kept, written.original_bytes, written.written_bytes)

    def _tensors(self, count: _Count, progress: Progress | None) -> Iterator[dict[str, Tensor]]:
        """What is written, one matrix at a time."""
        for done, name in enumerate(self._names, start=1):
            tensor = self._source.get(name, dtype=None)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                got = f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} NaN or infinite"
                raise CheckpointError(
                    sentence(f"{self._source.description}: {name}", expected="finite numbers", got=got)
                )
            parts = {name: tensor}
            if name in self._formats:
                weight, error = self._rounded(name, tensor)
                parts = stored_tensors(name, weight)
                count.errors.append(error)
            elif tensor.ndim == 2:
                count.kept.append(name)
            count.original_bytes += tensor.nbytes
            count.written_bytes += sum(part.nbytes for part in parts.values())
            yield parts
            if progress is not None:
                progress(done, len(self._names))

    def _rounded(self, name: str, tensor: Tensor) -> tuple[GroupedWeight, TensorError]:
        format = self._formats[name]
        step = padded_rows(max(1, _CHUNK_VALUES // tensor.shape[1]))
        pieces, error, size = [], 0.0, 0.0
        for rows in torch.split(tensor, step):
            try:
                piece = quantize(rows, format=format, group=self._group)
            except ConfigError as reason:
                raise CheckpointError(f"{self._source.description}: {name}: {reason}") from reason
            error += float((piece.dequantized() - rows.float()).square().sum(dtype=torch.float64))
            size += float(rows.float().square().sum(dtype=torch.float64))
            pieces.append(piece)
        return joined(pieces), TensorError(name, format, error, size)

    def _check_group(self, inputs: Mapping[str, int]) -> None:
        for name, columns in inputs.items():
            if columns % self._group:
                dividing = [str(group) for group in GROUPS if not any(size % group for size in inputs.values())]
                remedy = f"Use --group {' or '.join(dividing)}." if dividing else "No group divides every matrix."
                what = f"group {self._group} for {name}"
                raise ConfigError(sentence(what, expected=f"a divisor of {columns} inputs", got="none", remedy=remedy))


@dataclass
class _Count:
    """What is known so far of a checkpoint that is being written."""

    errors: list[TensorError] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    original_bytes: int = 0
    written_bytes: int = 0


def _format_of(name: str, shape: tuple[int, ...], weights: GroupedFormat, *, tied: bool) -> GroupedFormat | None:
    """What becomes of a tensor; None for what stays as it is."""
    if len(shape) != 2 or not name.endswith(".weight") or _FLOAT.search(name):
        return None
    if name == _EMBEDDING:
        return "int8" if tied else None
    return "int8" if name == _HEAD else weights
