"""Takes a model's tensors out of a source one by one and reports, once and by name, all that does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from latentkv.errors import CheckpointError
from latentkv.models.weights.source import WeightSource
from latentkv.ops.linear import Weight

_LISTED = 20


class TensorReader:
    """Records which tensors were asked for; `finish` raises one CheckpointError that names every problem.

    `ignorable` are regular expressions searched in the names of tensors that nobody took, for example
    `r"rotary_emb\\.inv_freq$"`: those are no problem and are listed in `ignored`. With `keep_stored`, matrices stay as
    they are stored where kernels can read that: see `take_matrix`.
    """

    def __init__(self, source: WeightSource, *, ignorable: Iterable[str] = (), keep_stored: bool = False) -> None:
        self._source = source
        self._keep_stored = keep_stored
        self._names = source.names()
        self._ignorable = tuple(re.compile(pattern) for pattern in ignorable)
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        """The tensor `name`, which must have `shape`; `dtype` None keeps the stored one.

        When it is absent or has another shape this is noted for `finish` and a placeholder of the right shape and
        dtype on the meta device is returned, so that loading goes on and all problems are told at once.
        """
        wanted = tuple(int(size) for size in shape)
        placeholder = torch.empty(wanted, dtype=dtype or torch.float32, device="meta")
        if name not in self._names:
            self._missing.append(f"{name} {list(wanted)}")
            return placeholder
        self._taken.add(name)
        stored = self._source.shape(name)
        if stored != wanted:
            self._misshapen.append(f"{name}: expected {list(wanted)}, got {list(stored)}")
            return placeholder
        return self._source.get(name, dtype=dtype)

    def take_float(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Like `take`; with `keep_stored`, bfloat16 stays bfloat16, mapped and not copied."""
        tensor = self.take(name, shape, None if self._keep_stored else dtype)
        return tensor if tensor.dtype is torch.bfloat16 else tensor.to(dtype)

    def take_matrix(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Weight:
        """Like `take_float`; with `keep_stored`, whole numbers in groups stay what they are."""
        if self._keep_stored and name in self._names and self._source.shape(name) == tuple(shape):
            grouped = self._source.grouped(name)
            if grouped is not None:
                self._taken.add(name)
                return grouped
        return self.take_float(name, shape, dtype)

    def optional(self, name: str, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor | None:
        """Like `take`, but None when the checkpoint has no such tensor."""
        return self.take(name, shape, dtype) if name in self._names else None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Tensors nobody took that match `ignorable`, sorted."""
        return tuple(name for name in self._unused() if self._is_ignorable(name))

    def finish(self) -> None:
        """Raise CheckpointError unless every tensor was found, fitted, and was used or ignorable."""
        unused = [name for name in self._unused() if not self._is_ignorable(name)]
        problems = [
            _listing("missing", self._missing),
            _listing("of the wrong shape", self._misshapen),
            _listing("not part of the model", unused),
        ]
        told = [problem for problem in problems if problem]
        if told:
            raise CheckpointError(f"{self._source.description} is not a checkpoint of this model: {'; '.join(told)}.")

    def _unused(self) -> list[str]:
        return sorted(self._names - self._taken)

    def _is_ignorable(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._ignorable)


def _listing(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what} ({', '.join(names[:_LISTED])}{more})"
