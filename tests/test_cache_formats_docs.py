"""docs/cache_formats.md: its sizes are the layout's, its quality tables are the committed record."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from latentkv.cache.layout import layout_for, mla_row
from latentkv.planner.catalog import find_model

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cache_formats.md").read_text()
DEEPSEEK_V2 = find_model("deepseek-ai/DeepSeek-V2").geometry
DEEPSEEK_67B = find_model("deepseek-ai/deepseek-llm-67b-base").geometry


def merging_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cache_quality_script", ROOT / "benchmarks" / "cache_quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int6", "int4"])
def test_sizes_are_the_layouts(format: str) -> None:
    row = mla_row(format, kv_lora_rank=512, qk_rope_head_dim=64).row_bytes
    token = layout_for(DEEPSEEK_V2, format).bytes_per_token
    less = 100 * (1 - token / layout_for(DEEPSEEK_67B).bytes_per_token)
    cells = f"| {row} | {100 * row / 1152:.0f} % | {token:,} B | {less:.1f} % less |"
    assert re.search(rf"^\| `{format}` .*{re.escape(cells)}$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int6", "int4"])
def test_the_picture_has_every_offset(format: str) -> None:
    row = mla_row(format, kv_lora_rank=512, qk_rope_head_dim=64)
    [heading] = re.findall(rf"^{format} +(0 .*)$", PAGE, re.MULTILINE)
    starts = {part.offset_bytes for part in row.parts} | {part.scales.offset_bytes for part in row.parts if part.scales}
    assert {*starts, row.row_bytes} <= set(map(int, heading.split()))
    [bar] = re.findall(rf"^{format} .*\n +(\|\S+\|)", PAGE, re.MULTILINE)
    assert 8 * len(bar.replace("|", "")) == row.row_bytes


def test_the_quality_tables_are_the_record() -> None:
    script = merging_script()
    record = json.loads(script.RECORD.read_text())
    assert len(record["texts"]) >= 2
    for rows in record["texts"].values():
        assert script.table(rows) in PAGE
    assert (ROOT / "docs" / "cache_quality.svg").is_file()
