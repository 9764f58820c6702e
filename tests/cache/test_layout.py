"""Bytes and offsets of rows: numbers a person can work out, and bytes that are really allocated."""

from __future__ import annotations

import pytest

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, CacheLayout, kv_row, layout_for, mla_row, row_layout
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


# Offset of scales and of the RoPE part, and the whole: what FlashMLA fixes for fp8, what the picture in layout.py says.
@pytest.mark.parametrize(
    ("format", "scales_at", "rope_at", "row_bytes"),
    [("fp8", 512, 528, 656), ("int8", 512, 528, 656), ("int6", 384, 400, 528), ("int4", 256, 272, 400)],
)
def test_coded_row_of_deepseek(format: str, scales_at: int, rope_at: int, row_bytes: int) -> None:
    row = mla_row(format, kv_lora_rank=512, qk_rope_head_dim=64)
    latent, rope = row.parts
    assert latent.scales is not None
    assert (latent.offset_bytes, latent.size_bytes) == (0, scales_at)
    assert (latent.scales.offset_bytes, latent.scales.size_bytes) == (scales_at, 16)
    assert (rope.offset_bytes, rope.size_bytes, rope.dtype, rope.scales) == (rope_at, 128, "bfloat16", None)
    assert (row.row_bytes, row.row_elements, row.storage_elements, row.storage_dtype) == (
        row_bytes,
        576,
        row_bytes,
        "uint8",
    )
    assert row.rotated == (format in ("int8", "int6", "int4"))


def test_sizes_that_are_no_whole_groups_are_filled_up_and_aligned() -> None:
    # 65 codes of 6 bits: two packing units of 48 bytes; two scales of 2 bytes; 3 bfloat16, and 2 to a multiple of 4.
    row = mla_row("int6", kv_lora_rank=65, qk_rope_head_dim=3)
    latent, rope = row.parts
    assert latent.scales is not None
    assert (latent.size_bytes, latent.scales.offset_bytes, latent.scales.count) == (96, 96, 2)
    assert (rope.offset_bytes, row.row_bytes) == (100, 108)
    # 5 bytes of fp8, 3 of alignment, one float32 scale.
    row = mla_row("fp8", kv_lora_rank=5, qk_rope_head_dim=1)
    latent, rope = row.parts
    assert latent.scales is not None
    assert (latent.size_bytes, latent.scales.offset_bytes, rope.offset_bytes, row.row_bytes) == (5, 8, 12, 16)


def test_six_bits_on_deepseek_v2_against_what_was_published() -> None:
    deepseek_67b = AttentionGeometry(
        num_hidden_layers=95, num_attention_heads=64, num_key_value_heads=8, head_dim=128, v_head_dim=128
    )
    replaced = layout_for(deepseek_67b).bytes_per_token
    pure = DEEPSEEK_V2.row_elements * DEEPSEEK_V2.num_hidden_layers * 6 // 8
    assert (replaced, pure) == (389_120, 25_920)
    assert round(100 * (1 - pure / replaced), 1) == 93.3
    sizes = {name: layout_for(DEEPSEEK_V2, name).bytes_per_token for name in ("fp8", "int8", "int6", "int4")}
    assert sizes == {"fp8": 39_360, "int8": 39_360, "int6": 31_680, "int4": 24_000}
    assert round(100 * (1 - sizes["int6"] / replaced), 1) == 91.9


def test_keys_and_values_are_both_codes_and_never_rotated() -> None:
    row = kv_row("int4", num_key_value_heads=2, head_dim=32, v_head_dim=16)
    assert [(part.name, part.dtype, part.offset_bytes, part.size_bytes) for part in row.parts] == [
        ("key", "int4", 0, 32),
        ("value", "int4", 36, 32),
    ]
    assert row.row_bytes == 72
    assert not row.rotated


def test_bytes_per_token_of_whole_models() -> None:
    assert layout_for(DEEPSEEK_V2).bytes_per_token == 69_120
    assert layout_for(LLAMA_3_8B).bytes_per_token == 131_072
    assert layout_for(LLAMA_3_8B, "f32").bytes_per_token == 262_144


@pytest.mark.parametrize(("latent", "rope"), [(512, 64), (256, 32), (576, 0), (0, 64)])
@pytest.mark.parametrize("format", FORMATS)
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
        row_layout("fp3", [("latent", 4, "latent")])
    with pytest.raises(OptionError, match="elements of row part 'rope'"):
        row_layout("f32", [("latent", 4, "latent"), ("rope", -1, "rope")])
    with pytest.raises(OptionError, match="page_tokens: expected a power of two from 1 to 256, got 48"):
        layout_for(DEEPSEEK_V2, page_tokens=48)
