from __future__ import annotations

import dataclasses

import pytest

from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import OptionError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", -1),
        ("seed", 2**63),
        ("max_tokens", 0),
        ("max_tokens", None),
        ("min_tokens", 300),
        ("logprobs", -1),
        ("logprobs", True),
        ("ignore_eos", 1),
        ("stop", [""]),
        ("stop", ""),
        ("stop", [5]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"),
        ("stop_token_ids", 12),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{name}: expected .*, got "):
        SamplingParams(**{name: value})


def test_unknown_options_and_positions_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)
    with pytest.raises(TypeError):
        SamplingParams(0.5)


def test_options_cannot_change_later() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().top_k = 3


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert SamplingParams(stop="END").stop_strings == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
