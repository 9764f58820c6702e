"""The ops that models call between matrix products, as plain PyTorch or from the native extension.

The native functions take float32 and bfloat16 in CPU memory with an adjacent last dimension. Anything else (float16,
another device, gradients wanted, odd strides) they hand to the reference, and count it with its reason in
`Kernels.fallbacks`: a fallback is slower, never wrong, and never silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from latentkv.backends.isa import find_isa, native_missing
from latentkv.cache.latent import LayerCache
from latentkv.cache.layout import RowLayout
from latentkv.errors import OptionError, sentence
from latentkv.backends.linear import NativeLinear
from latentkv.ops import linear, norm

if TYPE_CHECKING:
    from latentkv._native import Isa


# A kernel's result has no history: where gradients are wanted, it would train nothing without a word.
_GRADIENTS = "gradients are wanted"


class RMSNorm(Protocol):
    """What ops/norm.py's `rms_norm` computes."""

    def __call__(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """x [..., n], weight [n] -> [..., n] in x's dtype."""
        ...


class AddRMSNorm(Protocol):
    """What ops/norm.py's `add_rms_norm` computes."""

    def __call__(self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        """x and residual [..., n], weight [n] -> normed and sum, both [..., n] in x's dtype."""
        ...


class WriteRows(Protocol):
    """What `LayerCache.write` does."""

    def __call__(self, layer: LayerCache, slots: Tensor, parts: Mapping[str, Tensor], /) -> None:
        """Store row t of the parts ([T, elements] each) at slots[t] ([T] int64, all different). Mutates the layer.

        Raises IndexError, before anything is written, for a slot outside the cache.
        """
        ...


@dataclass(frozen=True)
class Kernels:
    """One implementation of every op.

    name:      "portable", or "native:" and the instruction set
    fallbacks: how often the reference ran in place of a native kernel, by op and reason
    """

    name: str
    rms_norm: RMSNorm
    add_rms_norm: AddRMSNorm
    write_rows: WriteRows
    fallbacks: Counter[str] = field(default_factory=Counter, compare=False)


def portable_kernels() -> Kernels:
    """The references, in plain PyTorch: every dtype and device."""
    return Kernels("portable", norm.rms_norm, norm.add_rms_norm, LayerCache.write)


def native_kernels(isa: str | None = None) -> Kernels:
    """The native kernels of instruction set `isa`; by default LATENTKV_ISA or the best one.

    Raises UnsupportedError without the extension, OptionError for a name that this build or CPU does not have.
    """
    native = _Native(find_isa(isa))
    return Kernels(
        f"native:{native.isa.name}", native.rms_norm, native.add_rms_norm, native.write_rows, native.fallbacks
    )


def choose_kernels(name: str = "auto") -> Kernels:
    """The kernels called `name`: "auto", "portable", "native" or "native:ISA".

    "auto" is native where the extension loads, else portable.
    Raises OptionError for an unknown name, UnsupportedError with the reason for a named one that cannot run here.
    """
    kind, _, isa = name.partition(":")
    if name == "auto":
        return portable_kernels() if native_missing() else native_kernels()
    if name == "portable":
        return portable_kernels()
    if kind == "native":
        return native_kernels(isa or None)
    raise OptionError(sentence("kernels", expected="auto, portable, native or native:ISA", got=repr(name)))


class _Native:
    """The native ops bound to one instruction set. Kernels write into tensors that Python allocates."""

    def __init__(self, isa: Isa) -> None:
        from latentkv._native import DeclinedError

        self.isa = isa
        self.fallbacks: Counter[str] = Counter()
        self._declined = DeclinedError

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        if torch.is_grad_enabled() and _any_requires_grad(x, weight):
            self._count("rms_norm", _GRADIENTS)
            return norm.rms_norm(x, weight, eps=eps)
        out = _empty_like(x)
        try:
            self.isa.rms_norm(x, weight, eps, out)
        except self._declined as reason:
            self._count("rms_norm", reason)
            return norm.rms_norm(x, weight, eps=eps)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and _any_requires_grad(x, residual, weight):
            self._count("add_rms_norm", _GRADIENTS)
            return norm.add_rms_norm(x, residual, weight, eps=eps)
        out, total = _empty_like(x), _empty_like(x)
        try:
            self.isa.rms_norm(x, weight, eps, out, residual, total)
        except self._declined as reason:
            self._count("add_rms_norm", reason)
            return norm.add_rms_norm(x, residual, weight, eps=eps)
        return out, total

    def write_rows(self, layer: LayerCache, slots: Tensor, parts: Mapping[str, Tensor]) -> None:
        if not _complete(layer.layout, parts):
            layer.write(slots, parts)
            return
        try:
            self.isa.write_rows(layer.rows, slots, tuple([parts[part.name] for part in layer.layout.parts]))
        except self._declined as reason:
            self._count("write_rows", reason)
            layer.write(slots, parts)

    def _count(self, op: str, reason: object) -> None:
        self.fallbacks[f"{op}: {reason}"] += 1


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _complete(layout: RowLayout, parts: Mapping[str, Tensor]) -> bool:
    """Whether every part is there with its width; where not, the reference raises the sentence that says so."""
    return len(parts) == len(layout.parts) and all(
        part.name in parts and parts[part.name].shape[1:] == (part.elements,) for part in layout.parts
    )


def _any_requires_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
