"""Bytes and offsets of rows: numbers a person can work out, and bytes that are really allocated."""

from __future__ import annotations

import pytest

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import CacheLayout, kv_row, layout_for, mla_row, row_layout
from latentkv.errors import OptionError
from latentkv.geometry import AttentionGeometry, MLAGeometry

DEEPSEEK_V2 = MLAGeometry(
    num_hidden_layers=60,
    num_attention_heads=128,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
)
LLAMA_3_8B = AttentionGeometry(
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, v_head_dim=128
)


@pytest.mark.parametrize(("format", "row_bytes"), [("f32", 2304), ("bf16", 1152), ("f16", 1152)])
def test_row_of_deepseek(format: str, row_bytes: int) -> None:
    row = mla_row(format, kv_lora_rank=512, qk_rope_head_dim=64)
    assert row.row_bytes == row_bytes
    assert row.part("rope").offset_bytes == row_bytes * 512 // 576


def test_bytes_per_token_of_whole_models() -> None:
    assert layout_for(DEEPSEEK_V2).bytes_per_token == 69_120
    assert layout_for(LLAMA_3_8B).bytes_per_token == 131_072
    assert layout_for(LLAMA_3_8B, "f32").bytes_per_token == 262_144


@pytest.mark.parametrize(("latent", "rope"), [(512, 64), (256, 32), (576, 0), (0, 64)])
@pytest.mark.parametrize("format", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("page_tokens", [1, 16, 256])
def test_layout_tells_the_bytes_that_are_allocated(latent: int, rope: int, format: str, page_tokens: int) -> None:
    layout = CacheLayout(mla_row(format, kv_lora_rank=latent, qk_rope_head_dim=rope), 3, page_tokens)
    cache = LatentCache(layout, 2)
    assert cache.size_bytes == 2 * layout.page_bytes == 2 * page_tokens * layout.bytes_per_token
    assert cache.storage.untyped_storage().nbytes() == cache.size_bytes


def test_parts_follow_each_other_without_gaps() -> None:
    row = kv_row("bf16", num_key_value_heads=2, head_dim=8, v_head_dim=4)
    assert row.part_names == ("key", "value")
    assert [(part.elements, part.offset_bytes) for part in row.parts] == [(16, 0), (8, 32)]
    assert (row.row_elements, row.row_bytes) == (24, 48)
    with pytest.raises(KeyError):
        row.part("latent")


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert layout_for(DEEPSEEK_V2).pages_for(tokens) == pages


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(OptionError, match="cache format: expected one of f32, bf16, f16"):
        row_layout("fp3", [("latent", 4)])
    with pytest.raises(OptionError, match="elements of row part 'rope'"):
        row_layout("f32", [("latent", 4), ("rope", -1)])
    with pytest.raises(OptionError, match="page_tokens: expected a power of two from 1 to 256, got 48"):
        layout_for(DEEPSEEK_V2, page_tokens=48)
