"""Sizes as people write them, and the refusals of those that would have to be guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentkv.errors import OptionError
from latentkv.planner.units import in_gb_and_gib, parse_bytes, parse_tokens, short


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GB", 80 * 10**9),
        ("80gb", 80 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("512 MiB", 2**29),
        ("1,024 KB", 1_024_000),
        ("7B", 7),
    ],
)
def test_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["80", "80G", "80 GX", "80 Gib/s", "GB", "", "-80GB", "0GB", "0.0001B", "nanGB", "1e3GB"]
)
def test_bytes_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(OptionError, match=r"^memory: expected a size .*, got "):
        parse_bytes(text)


def test_a_missing_unit_is_suggested() -> None:
    with pytest.raises(OptionError, match=r"Did you mean 80GiB or 80GB\?"):
        parse_bytes("80")
    with pytest.raises(OptionError, match=r"Did you mean 2TiB or 2TB\?"):
        parse_bytes("2T")


@pytest.mark.parametrize(
    ("text", "tokens"), [("32768", 32768), ("32k", 32768), ("32 K", 32768), ("1M", 2**20), ("1_000", 1000)]
)
def test_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["0", "-1", "32kB", "many", "0.0001k"])
def test_tokens_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(OptionError, match=r"^context: expected "):
        parse_tokens(text)


@given(st.integers(1, 2**60))
def test_plain_bytes_round_trip(size_bytes: int) -> None:
    assert parse_bytes(f"{size_bytes}B") == size_bytes


def test_both_units_are_told() -> None:
    assert in_gb_and_gib(389_120 * 32_768) == "12.75 GB (11.88 GiB)"
    assert in_gb_and_gib(69_120) == "69.12 KB (67.50 KiB)"
    assert in_gb_and_gib(999) == "999 B"


def test_four_figures() -> None:
    assert [short(value) for value in (1234.5, 123.45, 12.345, 0.12345)] == ["1,234", "123.5", "12.35", "0.123"]
