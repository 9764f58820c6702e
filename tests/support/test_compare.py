"""The comparer must be able to fail, each way it promises to, and be the only one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from support.compare import CODE_ERRORS, TOLERANCES, Tolerance, assert_close

NAN, INF = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ([1.0, 2.0], [1.0], "shape: expected \\[1\\], got \\[2\\]"),
        ([1.0, NAN], [1.0, 2.0], "NaN differs at 1 of 2 elements, first at \\(1,\\): expected 2.0, got nan"),
        ([1.0, 2.0], [1.0, NAN], "NaN differs"),
        ([INF, 2.0], [-INF, 2.0], "\\+inf differs"),
        ([1.0, 2.0], [1.0, -INF], "-inf differs"),
        ([1.0, 2.5, 3.1], [1.0, 2.0, 3.0], "2 of 3 elements \\(66.67%\\) are wrong, worst at \\(1,\\): expected 2.0"),
    ],
)
def test_a_difference_is_told_with_its_place(actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(torch.tensor(actual), torch.tensor(expected, dtype=torch.float64), tolerance="float32")


def test_the_wrong_dtype_is_told():
    with pytest.raises(AssertionError, match=r"dtype: expected torch.float32, got torch.bfloat16"):
        assert_close(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float64), tolerance="float32")


def test_a_systematic_error_below_the_element_bound_is_told():
    expected = torch.ones(1000, dtype=torch.float64)
    actual = expected * (1 + 9e-6 * torch.arange(1000).remainder(2))
    with pytest.raises(AssertionError, match="a systematic error"):
        assert_close(actual, expected, tolerance=Tolerance(dtype=torch.float64, relative=1e-5, cosine=1e-12))


@pytest.mark.parametrize("name", sorted(TOLERANCES))
def test_equal_values_pass_with_matching_nan_and_infinities(name):
    expected = torch.tensor([[0.0, 1.0, -2.0], [NAN, INF, -INF]], dtype=torch.float64)
    dtype = TOLERANCES[name].dtype or torch.float64
    assert_close(expected.to(dtype), expected, tolerance=name)


@pytest.mark.parametrize("name", sorted(TOLERANCES))
def test_every_tolerance_refuses_one_percent_and_those_of_codes_ten_times_their_error(name):
    expected = torch.ones(7, dtype=torch.float64)
    dtype = TOLERANCES[name].dtype or torch.float64
    error = 10 * CODE_ERRORS[name.split(" over ")[1]] if " over " in name else 0.01
    with pytest.raises(AssertionError, match=r"are wrong|the whole differs"):
        assert_close((expected * (1 + error)).to(dtype), expected, tolerance=name)


def test_empty_tensors_are_equal():
    assert_close(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.float64), tolerance="float32")


def test_no_other_comparer_and_no_reruns_in_the_tests():
    forbidden = re.compile(r"all" + r"close|is" + r"close|fla" + r"ky|testing\.assert_")
    tests = Path(__file__).parents[1]
    found = [
        f"{path.relative_to(tests)}:{number}: {line.strip()}"
        for path in sorted(tests.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []
