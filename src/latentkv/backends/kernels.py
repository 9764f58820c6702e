"""The ops that models call between matrix products, as plain PyTorch or from the native extension.

The native functions take float32 and bfloat16 in CPU memory with an adjacent last dimension, and write cache rows
of every format. Anything else (float16, another device, gradients wanted, odd strides) they hand to the reference, and
count it with its reason in `Kernels.fallbacks`: a fallback is slower, never wrong, and never silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from latentkv.backends.isa import find_isa, native_missing
from latentkv.backends.linear import LinearGated, LinearGroups, LinearStack, NativeLinear
from latentkv.backends.native_blocks import NativeBlocks
from latentkv.backends.native_codes import native_codes, native_parts
from latentkv.backends.native_routing import routing_rule
from latentkv.cache.latent import LayerCache
from latentkv.cache.layout import RowLayout
from latentkv.errors import OptionError, sentence
from latentkv.ops import linear, moe, norm
from latentkv.ops.moe import Routed, RoutingConfig
from latentkv.ops.rotate_query import rotate_query
from latentkv.ops.write_latent import write_latent

if TYPE_CHECKING:
    from latentkv._native import Isa


# A kernel's result has no history: where gradients are wanted, it would train nothing without a word.
_GRADIENTS = "gradients are wanted"


class RMSNorm(Protocol):
    """What ops/norm.py's `rms_norm` computes."""

    def __call__(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """x [..., n], weight [n] -> [..., n] in x's dtype."""
        ...


class WriteRows(Protocol):
    """What `LayerCache.write` does."""

    def __call__(self, layer: LayerCache, slots: Tensor, parts: Mapping[str, Tensor], /) -> None:
        """Store row t of the parts ([T, elements] each) at slots[t] ([T] int64, all different). Mutates the layer.

        Raises IndexError, before anything is written, for a slot outside the cache.
        """
        ...


class RotateOptions(TypedDict):
    """The keywords of ops/rotate_query.py's `rotate_query`, which describes them."""

    norm: Tensor | None
    eps: float
    angles: tuple[Tensor, Tensor]
    groups: int
    interleaved: bool
    nope: int


class RotateQuery(Protocol):
    """What ops/rotate_query.py's `rotate_query` computes, perhaps in place."""

    def __call__(self, query: Tensor, **options: Unpack[RotateOptions]) -> Tensor:
        """query [T, H, nope + Rq] -> the same with its RoPE part normed and rotated. It may be `query`, overwritten."""
        ...


class WriteOptions(TypedDict):
    """The keywords of ops/write_latent.py's `write_latent`, which describes them."""

    latent_norm: Tensor | None
    latent_eps: float
    rope_norm: Tensor | None
    rope_eps: float
    angles: tuple[Tensor, Tensor]
    groups: int
    interleaved: bool


class WriteLatent(Protocol):
    """What ops/write_latent.py's `write_latent` does."""

    def __call__(self, layer: LayerCache, slots: Tensor, kv: Tensor, **options: Unpack[WriteOptions]) -> None:
        """Store row t of kv [T, L + R], normed and rotated, at slots[t] ([T] int64, all different). Mutates the layer.

        Raises IndexError, before anything is written, for a slot outside the cache.
        """
        ...


class Choose(Protocol):
    """What ops/moe.py's `choose` computes."""

    def __call__(self, logits: Tensor, *, config: RoutingConfig, bias: Tensor | None) -> Routed:
        """logits [T, E] float32 to k experts and their weights for each token."""
        ...


@dataclass(frozen=True)
class Kernels:
    """One implementation of every op.

    name:      "portable", or "native:" and the instruction set
    blocks:    whole half-layers in one call, where there are such
    fallbacks: how often the reference ran in place of a native kernel, by op and reason
    """

    name: str
    rms_norm: RMSNorm
    write_rows: WriteRows
    rotate_query: RotateQuery
    write_latent: WriteLatent
    linear_stack: LinearStack
    linear_gated: LinearGated
    linear_groups: LinearGroups
    choose: Choose
    blocks: NativeBlocks | None = None
    fallbacks: Counter[str] = field(default_factory=Counter, compare=False)


def portable_kernels(*, narrow: bool = False) -> Kernels:
    """The references, in plain PyTorch: every dtype and device. `narrow` as for `native_kernels`."""
    return Kernels(
        name="portable",
        rms_norm=norm.rms_norm,
        write_rows=LayerCache.write,
        rotate_query=rotate_query,
        write_latent=write_latent,
        linear_stack=partial(linear.linear_stack, narrow=narrow),
        linear_gated=partial(linear.linear_gated, narrow=narrow),
        linear_groups=partial(linear.linear_groups, narrow=narrow),
        choose=moe.choose,
    )


def native_kernels(isa: str | None = None, *, integer: bool = True, narrow: bool = False) -> Kernels:
    """The native kernels of instruction set `isa`; by default LATENTKV_ISA or the best one.

    integer: whether int8 and int4 weights may meet activations rounded to int8 (docs/linear.md)
    narrow:  whether linear maps round their input, normed, to bfloat16

    Raises UnsupportedError without the extension, OptionError for a name that this build or CPU does not have.
    """
    native = _Native(find_isa(isa))
    maps = NativeLinear(native.isa, native.fallbacks, integer=integer, narrow=narrow)
    return Kernels(
        name=f"native:{native.isa.name}",
        rms_norm=native.rms_norm,
        write_rows=native.write_rows,
        rotate_query=native.rotate_query,
        write_latent=native.write_latent,
        linear_stack=maps.linear_stack,
        linear_gated=maps.linear_gated,
        linear_groups=maps.linear_groups,
        choose=native.choose,
        blocks=NativeBlocks(native.isa, maps, native.fallbacks),
        fallbacks=native.fallbacks,
    )


def choose_kernels(name: str = "auto", *, integer: bool = True, narrow: bool = False) -> Kernels:
    """The kernels called `name`: "auto", "portable", "native" or "native:ISA".

    "auto" is native where the extension loads, else portable. `integer` and `narrow` as for `native_kernels`.
    Raises OptionError for an unknown name, UnsupportedError with the reason for a named one that cannot run here.
    """
    kind, _, isa = name.partition(":")
    if name == "auto":
        return choose_kernels("portable" if native_missing() else "native", integer=integer, narrow=narrow)
    if name == "portable":
        return portable_kernels(narrow=narrow)
    if kind == "native":
        return native_kernels(isa or None, integer=integer, narrow=narrow)
    raise OptionError(sentence("kernels", expected="auto, portable, native or native:ISA", got=repr(name)))


class _Native:
    """The native ops bound to one instruction set. Kernels write into tensors that Python allocates."""

    def __init__(self, isa: Isa) -> None:
        from latentkv import _native

        self.isa = isa
        self.fallbacks: Counter[str] = Counter()
        self._native, self._declined = _native, _native.DeclinedError

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

    def write_rows(self, layer: LayerCache, slots: Tensor, parts: Mapping[str, Tensor]) -> None:
        if not _complete(layer.layout, parts):
            layer.write(slots, parts)
            return
        try:
            ordered = tuple([parts[part.name] for part in layer.layout.parts])
            self.isa.write_rows(layer.rows, slots, ordered, native_parts(layer.layout))
        except self._declined as reason:
            self._count("write_rows", reason)
            layer.write(slots, parts)

    def rotate_query(self, query: Tensor, **options: Unpack[RotateOptions]) -> Tensor:
        if torch.is_grad_enabled() and _any_requires_grad(query, options["norm"]):
            self._count("rotate_query", _GRADIENTS)
            return rotate_query(query, **options)
        try:
            self.isa.rotate_query(query, **options)
        except self._declined as reason:
            self._count("rotate_query", reason)
            return rotate_query(query, **options)
        return query

    def write_latent(self, layer: LayerCache, slots: Tensor, kv: Tensor, **options: Unpack[WriteOptions]) -> None:
        row = layer.layout
        width = row.part("latent").elements
        codes = native_codes(row) if layer.rows.dtype is torch.uint8 else None
        try:
            self.isa.write_latent(
                layer.rows, slots, kv, latent_width=width, **options, codes=codes, rotated=row.rotated
            )
        except self._declined as reason:
            self._count("write_latent", reason)
            write_latent(layer, slots, kv, **options)

    def choose(self, logits: Tensor, *, config: RoutingConfig, bias: Tensor | None) -> Routed:
        moe.check_choice(logits, config=config, bias=bias)
        tokens, count = logits.shape[0], config.num_experts_per_tok
        routed = Routed(torch.empty(tokens, count, dtype=torch.int64), torch.empty(tokens, count))
        try:
            if torch.is_grad_enabled() and _any_requires_grad(logits, bias):
                raise self._declined(_GRADIENTS)
            self._native.route(routing_rule(config, logits.shape[1], bias), logits, routed.experts, routed.weights)
        except self._declined as reason:
            self._count("choose", reason)
            return moe.choose(logits, config=config, bias=bias)
        return routed

    def _count(self, op: str, reason: object) -> None:
        self.fallbacks[f"{op}: {reason}"] += 1


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _complete(layout: RowLayout, parts: Mapping[str, Tensor]) -> bool:
    """Whether every part is there with its width; where not, the reference raises the sentence that says so."""
    return len(parts) == len(layout.parts) and all(
        part.name in parts and parts[part.name].shape[1:] == (part.elements,) for part in layout.parts
    )


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
