"""The one comparer of numbers, and the one table of tolerances. Nothing else in the tests compares with a tolerance.

`actual` is what latentkv computed; `expected` is a reference, float64 wherever one can be had. In this order: shape and
dtype, then where NaN and infinity stand, then every element (absolute or relative), then the cosine of the whole. The
cosine finds what the elements cannot: a small error that points everywhere in the same direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far `actual` may lie from `expected`.

    An element passes when |actual - expected| <= max(absolute, relative * |expected|, of_max * max |expected|).
    dtype:  what `actual` must have; None means the dtype of `expected`
    cosine: bound on 1 - cos(actual, expected) over all finite elements; None means the elements alone decide
    whole:  bound on |a - e|² / (|a|² + |e|²) over them, which also sees a wrong length; FlashMLA's "cosine difference"
    """

    dtype: torch.dtype | None
    absolute: float = 0.0
    relative: float = 0.0
    of_max: float = 0.0
    cosine: float | None = None
    whole: float | None = None


# Root mean square error of an element that is stored as a code, relative to that of its group: derived below.
CODE_ERRORS = {"fp8": 0.026, "int8": 0.0064, "int6": 0.024, "int4": 0.095}

# Where the numbers come from. u = 2**-24 is the rounding of float32, 2**-8 that of bfloat16. Test data is unit normal,
# so that scores and outputs are of order 1, and sums have K <= 2048 terms.
TOLERANCES = {
    # Copies, permutations and integer-valued arithmetic have no rounding.
    "exact": Tolerance(dtype=None),
    # A sum of K products drifts by about u * sqrt(K) = 2.7e-6. Four of them follow each other (absorption, scores,
    # weighted sum, up-projection): 1.1e-5 at worst, usually a tenth. The whole result's relative error is the root mean
    # square, at most 4.5e-6, and 1 - cos = error² / 2 = 1e-11.
    "float32": Tolerance(dtype=torch.float32, absolute=1e-5, relative=1e-5, cosine=1e-11),
    # Computed in float32 from exactly these inputs and rounded once: half a step, at most 2**-8 of an element, after
    # float32's own error of 1e-5, which alone remains near zero. The root mean square of the rounding is below 2**-9,
    # and (2**-9)² / 2 = 1.9e-6.
    "bfloat16": Tolerance(dtype=torch.bfloat16, absolute=1e-5, relative=2**-8 + 1e-5, cosine=1.9e-6),
    # The same for float16, whose half step is at most 2**-11 of an element: doubled for one, and for the whole,
    # where no element's error exceeds it but by chance, (2**-11)² / 2 = 1.2e-7.
    "float16": Tolerance(dtype=torch.float16, absolute=1e-5, relative=2**-10, cosine=1.2e-7),
    # The error of an LSE is a weighted mean of score errors (u * sqrt(K) each, 2.7e-6) plus the logarithm's rounding,
    # u * |lse|; scores far above 1 bring an error in proportion, 16 u = 1e-6 of the LSE.
    "lse": Tolerance(dtype=torch.float32, absolute=1e-5, relative=1e-6, cosine=1e-11),
    # Attention over rows of codes against attention over the numbers they were made from, normal ones (rotated formats
    # make them so). e is the rms error of a code relative to that of its group: half steps are amax / 254, 64, 16 for
    # int8, int6, int4 with amax = 2.83, 2.63, 2.63 standard deviations among 128 and 64 numbers, and the error is even
    # within, half step / sqrt(3): 0.0064, 0.024, 0.095. fp8's half step is 1/32 to 1/16 of an element, rms 0.026. The
    # error enters values (e of them) and, through scores of standard deviation 1, their weights (e again): sqrt(2) e
    # of the whole output, and 1 - cos = (sqrt(2) e)² / 2 = e², doubled for the luck of short contexts. The worst of
    # 1e4 elements is 4 deviations out: 6 e of the largest output. An LSE averages score errors of deviation e: 5 e.
    **{
        f"attention over {name}": Tolerance(dtype=torch.float32, of_max=6 * e, cosine=2 * e**2, whole=2 * e**2)
        for name, e in CODE_ERRORS.items()
    },
    **{f"lse over {name}": Tolerance(dtype=torch.float32, absolute=5 * e) for name, e in CODE_ERRORS.items()},
    # Attention over rows of codes by products of integers, against float64 over the same rows. A query becomes
    # words in units of 1/32767 (fp8: 1/8191) of the largest of 64 or 128 columns, 2.4 deviations: an rms error of
    # 2.4/32767/sqrt(12) = 2.1e-5 (8.5e-5) of its deviation, and so of a score's. Weights round alike, against the
    # largest of 64 tokens. fp8's codes are rounded to 1/8 of a scale, 448 of which are 2.8 deviations: 1/8 /
    # sqrt(12) / 160 = 2.3e-4. Scores here have deviations of 2.4 at most, which multiply both: e = 5e-5, and 6e-4
    # for fp8. Elements as above.
    **{
        f"{what} by words over {name}": Tolerance(dtype=torch.float32, absolute=6 * e, of_max=6 * e, cosine=2 * e**2)
        for what in ("attention", "lse")
        for name, e in {"fp8": 6e-4, "int8": 5e-5, "int6": 5e-5, "int4": 5e-5}.items()
    },
    # The promise to users: float32 logits differ from transformers' by at most 1e-4 of the largest logit, over whole
    # models whose both sides round in float32. (1e-4)² / 2 = 5e-9 for the whole.
    "logits": Tolerance(dtype=torch.float32, of_max=1e-4, cosine=5e-9),
    # FlashMLA's own tolerances, for tests that stand for its tests: tests/test_flash_mla_dense_decoding.py of its last
    # releases with dense decoding, and tests/test-sparse-{prefill,decode}.py. Theirs is a bfloat16 kernel against a
    # float32 formula; 1e-7 is the bound its comparer assumes where none is named.
    "flash_mla dense out": Tolerance(dtype=torch.bfloat16, absolute=8e-4, relative=2.01 / 128, whole=5e-6),
    "flash_mla dense lse": Tolerance(dtype=torch.float32, absolute=1e-6, relative=8.01 / 65536, whole=1e-7),
    "flash_mla sparse decode out": Tolerance(dtype=torch.bfloat16, absolute=1e-3, relative=2.01 / 128, whole=5e-6),
    "flash_mla sparse decode lse": Tolerance(dtype=torch.float32, absolute=1e-6, relative=8.01 / 65536, whole=1e-7),
    "flash_mla sparse prefill out": Tolerance(dtype=torch.bfloat16, absolute=8e-4, relative=3.01 / 128, whole=1e-5),
    "flash_mla sparse prefill lse": Tolerance(dtype=torch.float32, absolute=1e-6, relative=2.01 / 65536, whole=1e-7),
}


def assert_close(actual: Tensor, expected: Tensor, *, tolerance: str | Tolerance) -> None:
    """Fail unless `actual` equals `expected` within a tolerance of the table (by name) or a given one.

    The message tells the worst element's position, both its values, and the share of elements that are wrong.
    """
    rule = TOLERANCES[tolerance] if isinstance(tolerance, str) else tolerance
    wanted = expected.dtype if rule.dtype is None else rule.dtype
    assert actual.shape == expected.shape, f"shape: expected {list(expected.shape)}, got {list(actual.shape)}"
    assert actual.dtype == wanted, f"dtype: expected {wanted}, got {actual.dtype}"
    got, want = actual.detach().double(), expected.detach().double()
    _assert_same_mask("NaN", got.isnan(), want.isnan(), got, want)
    _assert_same_mask("+inf", got == torch.inf, want == torch.inf, got, want)
    _assert_same_mask("-inf", got == -torch.inf, want == -torch.inf, got, want)
    finite = want.isfinite()
    if finite.any():
        _assert_elements(got, want, finite, rule)
        _assert_cosine(got[finite], want[finite], rule)
        _assert_whole(got[finite], want[finite], rule)


def _assert_same_mask(name: str, got_mask: Tensor, want_mask: Tensor, got: Tensor, want: Tensor) -> None:
    differ = got_mask != want_mask
    if not differ.any():
        return
    where = tuple(differ.nonzero()[0].tolist())
    raise AssertionError(
        f"{name} differs at {int(differ.sum())} of {differ.numel()} elements, first at {where}: "
        f"expected {want[where].item()!r}, got {got[where].item()!r}"
    )


def _assert_elements(got: Tensor, want: Tensor, finite: Tensor, rule: Tolerance) -> None:
    error = torch.where(finite, (got - want).abs(), 0.0)
    largest = want[finite].abs().max().item()
    allowed = torch.where(finite, want.abs() * rule.relative, 0.0).clamp(min=max(rule.absolute, rule.of_max * largest))
    excess = error - allowed
    bad = excess > 0
    if not bad.any():
        return
    where = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{int(bad.sum())} of {bad.numel()} elements ({bad.double().mean().item():.2%}) are wrong, worst at {where}: "
        f"expected {want[where].item()!r}, got {got[where].item()!r}, "
        f"error {error[where].item():.3e} > {allowed[where].item():.3e} allowed"
    )


def _assert_cosine(got: Tensor, want: Tensor, rule: Tolerance) -> None:
    size = got.norm() * want.norm()
    if rule.cosine is None or size == 0:
        return
    difference = 1.0 - (torch.dot(got, want) / size).item()
    assert difference <= rule.cosine, f"1 - cosine is {difference:.3e} > {rule.cosine:.3e} allowed: a systematic error"


def _assert_whole(got: Tensor, want: Tensor, rule: Tolerance) -> None:
    size = (got.square().sum() + want.square().sum()).item()
    if rule.whole is None or size == 0:
        return
    difference = (got - want).square().sum().item() / size
    assert difference <= rule.whole, f"the whole differs by {difference:.3e} > {rule.whole:.3e} allowed: many errors"
