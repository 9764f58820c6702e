"""Whether two backends' results for one call agree: the errors that matter, and how large they may be.

Both computed from the same stored rows, so that only the order of sums, the exponential and the last rounding differ.
The bounds are those of float32 arithmetic on real models' numbers, whose scores are not of order 1 as in tests:

    LSE      sums of K products drift by 2**-24 * sqrt(K) of the scores' own size, and scores are of the LSE's size or,
             before they cancel, some ten times that: 1e-4 absolute or 1e-5 of the LSE, whichever is more
    output   weights are wrong by the scores' errors, relative: 1e-4 of the largest output of the same token and head;
             for results rounded to bfloat16 (half a step of 2**-8 on each side) 2**-7 more
    codes    native kernels multiply codes by words of 15 bits (over fp8 of 13, its codes of 12): a score's error is
             2e-5 (2.5e-4) of the scores' deviation. With deviations of 2.4, and six times that for the worst of many,
             both bounds grow by 3e-4 (3.6e-3)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.backends.base import Attended

LSE_ABSOLUTE = 1e-4
LSE_RELATIVE = 1e-5
OUT_OF_MAX = 1e-4
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7}
WORDS = {"fp8": 3.6e-3, "int8": 3e-4, "int6": 3e-4, "int4": 3e-4}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two results differ.

    out_error: largest |difference| of an output, relative to the largest output of its token and head
    lse_error: largest |difference| of an LSE, divided by max(1, |LSE| / 10), so that one bound serves all
    worst:     (token, head) of the larger of both, each relative to its bound
    """

    ok: bool
    out_error: float
    lse_error: float
    worst: tuple[int, int]


def compare(got: Attended, expected: Attended, *, format: str) -> Agreement:
    """Compare results of one call over rows of `format`; infinite errors where NaN or infinity stand in one only."""
    if not expected.lse.numel():
        return Agreement(ok=True, out_error=0.0, lse_error=0.0, worst=(0, 0))
    size = expected.lse.abs().nan_to_num(0, posinf=0) / (LSE_ABSOLUTE / LSE_RELATIVE)
    lse = _difference(got.lse, expected.lse) / size.clamp(min=1)
    # An output that is zero as a whole has to be zero on both sides.
    largest = expected.out.float().abs().amax(-1).nan_to_num(0, posinf=0).clamp(min=torch.finfo(torch.float32).tiny)
    out = _difference(got.out, expected.out).amax(-1) / largest
    words = WORDS.get(format, 0.0)
    out_bound = OUT_OF_MAX + words + ROUNDING[expected.out.dtype]
    relative = torch.maximum(lse / (LSE_ABSOLUTE + words), out / out_bound)
    place = int(relative.argmax())
    token, head = divmod(place, relative.shape[1])
    return Agreement(
        ok=bool(relative.flatten()[place] <= 1),
        out_error=float(out.max()),
        lse_error=float(lse.max()),
        worst=(token, head),
    )


def _difference(got: Tensor, expected: Tensor) -> Tensor:
    """|got - expected| in float32; 0 where both are the same infinity or NaN, infinite where only one is."""
    got, expected = got.float(), expected.float()
    same = (got == expected) | (got.isnan() & expected.isnan())
    return torch.where(same, 0.0, (got - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf))
