"""Linear maps from the native extension, over one instruction set; ops/linear.py is what they compute.

float32 and bfloat16 activations; weights in float32, bfloat16, int8 and int4. What the kernels cannot take goes to the
reference and is counted, as in kernels.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentkv.ops import linear as reference
from latentkv.ops.linear import InputNorm, Projection
from latentkv.ops.quantized import GroupedWeight

if TYPE_CHECKING:
    from latentkv._native import Isa

# A kernel's result has no history: where gradients are wanted, it would train nothing without a word.
_GRADIENTS = "gradients are wanted"


class NativeLinear:
    """The linear ops bound to one instruction set.

    integer: whether int8 and int4 weights may be multiplied with activations rounded to int8, in the weight's groups,
             where that is faster (docs/linear.md tells the error)
    """

    def __init__(self, isa: Isa, fallbacks: Counter[str], *, integer: bool = True) -> None:
        from latentkv import _native

        self._native = _native
        self._isa = isa
        self._integer = integer
        self._fallbacks = fallbacks

    def project(
        self,
        x: Tensor,
        projections: Sequence[Projection],
        *,
        norm: InputNorm | None = None,
        residual: Tensor | None = None,
        factor: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """See `ops.linear.project`; one call, the input prepared once."""
        try:
            outs = tuple([_result(x, projection) for projection in projections])
            weights = tuple([self._handle(projection) for projection in projections])
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            threads = torch.get_num_threads()
            self._isa.linear(x, weights, outs, residual, factor, weight, eps, self._integer, threads)
        except self._native.DeclinedError as reason:
            self._count("project", reason)
            return reference.project(x, projections, norm=norm, residual=residual, factor=factor)
        return outs

    def project_gated(self, x: Tensor, gate: Projection, up: Projection, *, norm: InputNorm | None = None) -> Tensor:
        """See `ops.linear.project_gated`."""
        try:
            out = _result(x, up)
            weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
            handles, threads = (self._handle(gate), self._handle(up)), torch.get_num_threads()
            self._isa.linear_gated(x, *handles, out, weight, eps, self._integer, threads)
        except self._native.DeclinedError as reason:
            self._count("project_gated", reason)
            first, second = self.project(x, (gate, up), norm=norm)
            return torch.nn.functional.silu(first) * second
        return out

    def project_heads(self, x: Tensor, weight: Tensor, *, transposed: bool = False) -> Tensor:
        """See `ops.linear.project_heads`."""
        try:
            _refuse_gradients(self._native.DeclinedError, x, weight)
            handle = self._native.float_weight(weight, None, transposed)
            out = x.new_empty(x.shape[0], x.shape[1], weight.shape[2 if transposed else 1])
            self._isa.linear_heads(x, handle, out, torch.get_num_threads())
        except self._native.DeclinedError as reason:
            self._count("project_heads", reason)
            return reference.project_heads(x, weight, transposed=transposed)
        return out

    def project_groups(
        self,
        x: Tensor,
        counts: Sequence[int],
        projections: Sequence[Projection],
        *,
        gates: Sequence[Projection] | None = None,
    ) -> Tensor:
        """See `ops.linear.project_groups`; weights of stretches without rows are not touched."""
        used = [index for index, count in enumerate(counts) if count]
        try:
            out = x.new_empty(x.shape[0], projections[0].out_features)
            weights = tuple([self._handle(projections[index]) for index in used])
            first = None if gates is None else tuple([self._handle(gates[index]) for index in used])
            rows = tuple([counts[index] for index in used])
            self._isa.linear_groups(x, rows, weights, first, out, self._integer, torch.get_num_threads())
        except self._native.DeclinedError as reason:
            self._count("project_groups", reason)
            return reference.project_groups(x, counts, projections, gates=gates)
        return out

    def _handle(self, projection: Projection) -> Any:
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
        _refuse_gradients(self._native.DeclinedError, weight)
        return self._native.float_weight(weight, bias)

    def _count(self, op: str, reason: object) -> None:
        self._fallbacks[f"{op}: {reason}"] += 1


def _result(x: Tensor, projection: Projection) -> Tensor:
    return x.new_empty((*x.shape[:-1], projection.out_features))


def _refuse_gradients(declined: type[Exception], *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise declined(_GRADIENTS)
