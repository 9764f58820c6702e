"""Keys and values in codes, read and written natively: against float64 over what they stand for, and byte by byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.attend import attend, request_for
from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import native_kernels
from latentkv.backends.registry import select
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, CacheLayout, Coding, kv_row
from support.compare import assert_close
from support.hostile import awkward_lengths, hostile_case, spoil_rows, strided_normal
from support.reference import kv_reference

CODED = ("fp8", "int8", "int6", "int4")
# Every kind of call, beside each other.
LENGTHS = [lengths for mode in awkward_lengths(16).values() for lengths in mode]
# Heads, groups, key width: groups that begin with a packing unit and within one, scales shared by groups and within a
# key, one new row for a group and more than a tile.
SIZES = [(6, 1, 5), (9, 3, 64), (6, 6, 16), (1, 1, 8), (8, 2, 128), (3, 1, 256), (80, 4, 20), (4, 2, 80)]

every_isa = pytest.mark.parametrize("isa", available_isas())
every_format = pytest.mark.parametrize("format", CODED)


@every_isa
@pytest.mark.parametrize(("heads", "groups", "width"), SIZES)
@every_format
def test_attention_over_keys_and_values_in_codes(format: str, heads: int, groups: int, width: int, isa: str) -> None:
    row = kv_row(format, num_key_value_heads=groups, head_dim=width, v_head_dim=width + 3)
    case = hostile_case(row, LENGTHS, page_tokens=16)
    query = strided_normal(case.batch.num_tokens, heads, width, seed=17)
    got = attend(query, case.layer, case.batch, scale=0.1, backend=f"native:{isa}")
    out, lse = kv_reference(query, case.contexts, case.lengths, groups=groups, scale=0.1)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("deterministic", [False, True])
@every_format
def test_long_contexts_in_pieces(format: str, deterministic: bool, isa: str) -> None:
    row = kv_row(format, num_key_value_heads=3, head_dim=64, v_head_dim=64)
    case = hostile_case(row, [(1, 2500), (3, 1300), (0, 5), (40, 700)], page_tokens=64)
    query = strided_normal(case.batch.num_tokens, 9, 64, seed=3, dtype=torch.bfloat16)
    got = attend(query, case.layer, case.batch, scale=0.1, backend=f"native:{isa}", deterministic=deterministic)
    out, lse = kv_reference(query, case.contexts, case.lengths, groups=3, scale=0.1)
    assert_close(got.out, out, tolerance="bfloat16")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@every_format
def test_a_group_of_codes_that_is_no_number_makes_its_sequence_none(format: str, isa: str) -> None:
    """Of two sequences, the one whose key's scale is NaN; the other does not see it."""
    layout = CacheLayout(kv_row(format, num_key_value_heads=2, head_dim=64, v_head_dim=64), 1, 16)
    case = hostile_case(layout.row, [(1, 20), (1, 20)], page_tokens=16)
    slot = case.batch.slots[0]
    broken = {part.name: torch.ones(1, part.elements) for part in layout.row.parts}
    broken["key"][0, 3] = torch.inf
    case.layer.write(slot[None], broken)
    query = strided_normal(2, 4, 64, seed=5)
    got = attend(query, case.layer, case.batch, scale=0.1, backend=f"native:{isa}")
    assert not got.lse[0, :2].isfinite().any()
    assert got.lse[1].isfinite().all()


@every_format
def test_groups_of_another_size_are_left_to_the_portable_backend(format: str) -> None:
    """The kernels take scales for whole packing units."""
    known = FORMATS[format]
    odd = replace(known, name=f"{format}-groups32", latent=Coding(known.latent.dtype, 32, known.latent.scale_dtype))
    case = hostile_case(kv_row(odd, num_key_value_heads=1, head_dim=8, v_head_dim=8), [(1, 3)], page_tokens=16)
    selection = select(request_for(torch.zeros(1, 1, 8), case.layer, case.batch))
    assert selection.backend.name == "portable"
    [(name, reason)] = selection.rejected
    assert name == "native"
    assert odd.name in reason


def hostile_numbers(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """Ordinary rows, and rows of zeros, of huge, tiny and equal numbers, of infinity and of NaN; strided."""
    numbers = torch.randn(tokens, width + 3, generator=torch.Generator().manual_seed(width))[:, :width]
    spoil_rows(numbers, middle=width // 2)
    return numbers.to(dtype)


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "value_width"), [(192, 192), (130, 7), (64, 80)])
@every_format
def test_every_byte_written_is_the_references(
    format: str, width: int, value_width: int, dtype: torch.dtype, isa: str
) -> None:
    row = kv_row(format, num_key_value_heads=1, head_dim=width, v_head_dim=value_width)
    ours, theirs = LatentCache(CacheLayout(row, 1, 16), 4), LatentCache(CacheLayout(row, 1, 16), 4)
    for cache in (ours, theirs):
        cache.storage.fill_(255)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:40]
    parts = {"key": hostile_numbers(40, width, dtype), "value": hostile_numbers(40, value_width, dtype)}
    kernels = native_kernels(isa)
    kernels.write_rows(ours.layer(0), slots, parts)
    theirs.layer(0).write(slots, parts)
    assert not kernels.fallbacks
    # A scale that is NaN may have any bits of a NaN.
    finite = torch.ones(64, dtype=torch.bool)
    finite[slots[[5, 6]]] = False
    different = (ours.storage != theirs.storage).view(64, -1).any(dim=1)
    assert not different[finite].any()
    for name, read in ours.layer(0).read(slots).items():
        assert_close(read, theirs.layer(0).read(slots)[name], tolerance="exact")
