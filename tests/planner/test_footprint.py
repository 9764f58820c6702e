"""Bytes of rows and sequences against numbers worked out by hand."""

from __future__ import annotations

import pytest

from latentkv.cache.layout import FORMATS, layout_for
from latentkv.errors import OptionError
from latentkv.planner.catalog import find_model
from latentkv.planner.compare import compare
from latentkv.planner.footprint import RowBytes, code_bits, footprint, row_bytes
from latentkv.planner.layers import CachedLayers
from latentkv.planner.twins import twins

V2 = find_model("deepseek-ai/DeepSeek-V2")


@pytest.mark.parametrize(
    ("format", "parts"),
    [
        ("f32", RowBytes(2304, 0, 0, 0)),
        ("bf16", RowBytes(1152, 0, 0, 0)),
        ("fp8", RowBytes(576, 64, 16, 0)),
        ("int8", RowBytes(576, 64, 16, 0)),
        ("int6", RowBytes(432, 80, 16, 0)),
        ("int4", RowBytes(288, 96, 16, 0)),
    ],
)
def test_where_the_bytes_of_deepseek_v2_go(format: str, parts: RowBytes) -> None:
    assert row_bytes(V2.geometry, format) == parts
    assert parts.total == layout_for(V2.geometry, format).row.row_bytes


@pytest.mark.parametrize("format", FORMATS)
def test_a_uniform_model_is_what_the_layout_says(format: str) -> None:
    layout = layout_for(V2.geometry, format, page_tokens=16)
    cache = footprint(V2.layers, format=format, page_tokens=16)
    assert cache.bytes_per_token == layout.bytes_per_token
    assert cache.sequence_bytes(33) == 3 * layout.page_bytes


def test_bits_of_codes() -> None:
    assert [code_bits(name) for name in ("f32", "bf16", "fp8", "int8", "int6", "int4")] == [32, 16, 8, 8, 6, 4]


def test_the_published_headline_and_the_honest_figure() -> None:
    other = find_model("deepseek-ai/deepseek-llm-67b-base")
    comparison = compare(V2, other, format="int6")
    assert comparison.other_bytes_per_token == 2 * 8 * 128 * 95 * 2
    assert [step.bytes_per_token for step in comparison.steps] == [69_120, 25_920, 30_720, 31_680]
    assert [round(100 * step.smaller, 1) for step in comparison.steps] == [82.2, 93.3, 92.1, 91.9]
    assert [step.bytes_per_token for step in compare(V2, other, format="bf16").steps] == [69_120]
    assert [step.bytes_per_token for step in compare(V2, other, format="f32").steps] == [69_120, 138_240]


def test_twins_of_deepseek_v2() -> None:
    heads = {(twin.kind, twin.row_elements) for twin in twins(V2.geometry, key_dim=128)}
    assert heads == {("mha", 32_768), ("gqa", 2048), ("mqa", 256)}
    assert [twin.row_elements for twin in twins(V2.geometry, groups=16)] == [40_960, 5120, 320]
    assert [twin.kind for twin in twins(V2.geometry, groups=48)] == ["mha", "mqa"]


@pytest.mark.parametrize(
    ("window", "context", "pages"),
    [(1, 1000, 1), (64, 1000, 2), (65, 1000, 2), (66, 1000, 3), (128, 1000, 3), (128, 100, 2), (4096, 1000, 16)],
)
def test_a_window_can_begin_anywhere_in_a_page(window: int, context: int, pages: int) -> None:
    layers = CachedLayers(5, V2.geometry, window_tokens=window)
    [group] = footprint((layers,), page_tokens=64).groups
    assert group.pages(context) == pages
    # The same by trying every place in a page where a window can begin.
    tried = max((start + min(window, context) - 1) // 64 - start // 64 + 1 for start in range(64))
    assert pages == min(tried, -(-context // 64))


def test_deepseek_v3_2_keeps_132_bytes_of_indexer_key() -> None:
    cache = footprint(find_model("deepseek-ai/DeepSeek-V3.2").layers, format="fp8")
    assert cache.bytes_per_token == 61 * (656 + 132)
    assert footprint(find_model("deepseek-ai/DeepSeek-V3.2").layers).bytes_per_token == 61 * 2 * (576 + 128)


def test_states_do_not_grow() -> None:
    cache = footprint(find_model("moonshotai/Kimi-Linear-48B-A3B-Instruct").layers)
    assert cache.state_bytes == 20 * (32 * 128 * 128 * 4 + 3 * 3 * 32 * 128 * 2)
    assert cache.sequence_bytes(6400) - cache.sequence_bytes(64) == 99 * 64 * 7 * 1152
    assert cache.grows
    assert not footprint(find_model("mistralai/Mistral-7B-v0.1").layers).grows


def test_unknown_format_and_page_size() -> None:
    with pytest.raises(OptionError, match="cache format: expected one of f32"):
        footprint(V2.layers, format="int7")
    with pytest.raises(OptionError, match="page_tokens"):
        footprint(V2.layers, page_tokens=48)
