"""Linear maps from the native extension, over one instruction set; ops/linear.py is what they compute.

float32 and bfloat16 activations; weights in float32, bfloat16, int8 and int4. What the kernels cannot take goes to the
reference and is counted, as in kernels.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from latentkv.ops import linear as reference
from latentkv.ops.linear import InputNorm, Projection
from latentkv.ops.quantized import GroupedWeight

if TYPE_CHECKING:
    from latentkv._native import Isa

# A kernel's result has no history: where gradients are wanted, it would train nothing without a word.
_GRADIENTS = "gradients are wanted"


class LinearStack(Protocol):
    """What ops/linear.py's `linear_stack` computes."""

    def __call__(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        *,
        norm: InputNorm | None = None,
        residual: Tensor | None = None,
        factor: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """x [..., in] to one tensor [..., out] in x's dtype for each projection."""
        ...


class LinearGated(Protocol):
    """What ops/linear.py's `linear_gated` computes."""

    def __call__(self, x: Tensor, gate: Projection, up: Projection, *, norm: InputNorm | None = None) -> Tensor:
        """x [..., in] to [..., out] in x's dtype."""
        ...


class LinearGroups(Protocol):
    """What ops/linear.py's `linear_groups` computes."""

    def __call__(
        self,
        x: Tensor,
        counts: Sequence[int],
        projections: Sequence[Projection],
        *,
        gates: Sequence[Projection] | None = None,
    ) -> Tensor:
        """x [sum(counts), in] to [sum(counts), out] in x's dtype."""
        ...


class NativeLinear:
    """The linear ops bound to one instruction set.

    integer: whether int8 and int4 weights may be multiplied with activations rounded to int8, in the weight's groups,
             where that is faster (docs/linear.md tells the error)
    narrow:  whether activations, normed, are rounded to bfloat16 before they are multiplied
    """

    def __init__(self, isa: Isa, fallbacks: Counter[str], *, integer: bool = True, narrow: bool = False) -> None:
        from latentkv import _native

        self._native = _native
        self._isa = isa
        self.integer, self.narrow = integer, narrow
        self._fallbacks = fallbacks

    def linear_stack(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        *,
        norm: InputNorm | None = None,
        residual: Tensor | None = None,
        factor: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """See `ops.linear.linear_stack`; one call, the input prepared once."""
        try:
            self._refuse_gradients(x, *projections)
            outs = tuple([_result(x, projection) for projection in projections])
            weights = tuple([self.handle(projection) for projection in projections])
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            threads = torch.get_num_threads()
            self._isa.linear(x, weights, outs, residual, factor, weight, eps, self.integer, self.narrow, threads)
        except self._native.DeclinedError as reason:
            self._count("linear_stack", reason)
            return reference.linear_stack(
                x, projections, norm=norm, residual=residual, factor=factor, narrow=self.narrow
            )
        return outs

    def linear_gated(self, x: Tensor, gate: Projection, up: Projection, *, norm: InputNorm | None = None) -> Tensor:
        """See `ops.linear.linear_gated`."""
        try:
            self._refuse_gradients(x, gate, up)
            out = _result(x, up)
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            handles, threads = (self.handle(gate), self.handle(up)), torch.get_num_threads()
            self._isa.linear_gated(x, *handles, out, weight, eps, self.integer, self.narrow, threads)
        except self._native.DeclinedError as reason:
            self._count("linear_gated", reason)
            first, second = self.linear_stack(x, (gate, up), norm=norm)
            return torch.nn.functional.silu(first) * second
        return out

    def linear_groups(
        self,
        x: Tensor,
        counts: Sequence[int],
        projections: Sequence[Projection],
        *,
        gates: Sequence[Projection] | None = None,
    ) -> Tensor:
        """See `ops.linear.linear_groups`; weights of stretches without rows are not touched."""
        used = [index for index, count in enumerate(counts) if count]
        try:
            self._refuse_gradients(x, *projections, *(gates or ()))
            out = x.new_empty(x.shape[0], projections[0].out_features)
            weights = tuple([self.handle(projections[index]) for index in used])
            first = None if gates is None else tuple([self.handle(gates[index]) for index in used])
            rows = tuple([counts[index] for index in used])
            threads = torch.get_num_threads()
            self._isa.linear_groups(x, rows, weights, first, out, self.integer, self.narrow, threads)
        except self._native.DeclinedError as reason:
            self._count("linear_groups", reason)
            return reference.linear_groups(x, counts, projections, gates=gates, narrow=self.narrow)
        return out

    def handle(self, projection: Projection) -> Any:
        """The native weight, made once. Raises DeclinedError for what kernels do not take."""
        handle = projection.handles.get("native")
        if handle is None:
            handle = projection.handles["native"] = self._make_handle(projection)
        return handle

    def _make_handle(self, projection: Projection) -> Any:
        weight, bias = projection.weight, projection.bias
        if isinstance(weight, GroupedWeight):
            return self._native.grouped_weight(
                weight.codes, weight.scales, weight.minima, bias, *weight.shape, weight.group, weight.zero
            )
        return self._native.float_weight(weight, bias)

    def _refuse_gradients(self, x: Tensor, *projections: Projection) -> None:
        if torch.is_grad_enabled() and (x.requires_grad or any(_is_trained(projection) for projection in projections)):
            raise self._native.DeclinedError(_GRADIENTS)

    def _count(self, op: str, reason: object) -> None:
        self._fallbacks[f"{op}: {reason}"] += 1


def _result(x: Tensor, projection: Projection) -> Tensor:
    # In a decode step results are a large part of what is not computing: this form takes half of new_empty's time.
    if x.ndim == 2:
        return torch.empty(x.shape[0], projection.out_features, dtype=x.dtype)
    return x.new_empty((*x.shape[:-1], projection.out_features))


def _is_trained(projection: Projection) -> bool:
    weight, bias = projection.weight, projection.bias
    return (isinstance(weight, Tensor) and weight.requires_grad) or (bias is not None and bias.requires_grad)
