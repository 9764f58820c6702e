"""Dense decoding through latentkv.flash_mla: FlashMLA's grid at FlashMLA's tolerances, and float64 beyond it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from latentkv.errors import StalePlanError
from latentkv.flash_mla import flash_mla_with_kvcache, get_mla_metadata
from support.compare import assert_close
from support.flash_mla import DenseCase, DenseData, dense_data, dense_reference

HEADS = [(h_q, h_kv) for h_q in (1, 3, 9, 63, 64, 126, 128) for h_kv in (1, 2, 3, 8) if h_q % h_kv == 0]
FLAGS = list(itertools.product([False, True], [False, True]))

# The cases of tests/test_flash_mla_dense_decoding.py, all of them.
GRID = [
    *(
        DenseCase(b, s_q, s_k, *heads, is_varlen, is_causal)
        for b in (1, 2, 6, 64)
        for s_q in (1, 2, 4)
        for s_k in (20, 140, 4096)
        for heads in HEADS
        for is_varlen, is_causal in FLAGS
    ),
    *(
        DenseCase(128, 2, 4096, *heads, is_varlen=True, is_causal=is_causal, have_zero_seqlen_k=True)
        for heads in HEADS
        for is_causal in (False, True)
    ),
]
# Every size and every flag of the grid, though not every combination.
REDUCED = [
    *(
        DenseCase(b, s_q, s_k, *heads, is_varlen, is_causal)
        for (b, s_q, s_k), (is_varlen, is_causal), heads in zip(
            itertools.cycle([(1, 1, 20), (2, 4, 140), (6, 2, 140), (64, 1, 20), (1, 4, 4096), (2, 1, 140), (6, 2, 20)]),
            itertools.cycle(FLAGS),
            HEADS * 3,
            strict=False,
        )
    ),
    DenseCase(128, 2, 64, 16, 1, is_varlen=True, is_causal=True, have_zero_seqlen_k=True),
    DenseCase(128, 2, 64, 24, 3, is_varlen=True, is_causal=False, have_zero_seqlen_k=True),
]


def run(case: DenseCase, data: DenseData) -> tuple[torch.Tensor, torch.Tensor]:
    """The calls as FlashMLA's test makes them."""
    tile_scheduler_metadata, num_splits = get_mla_metadata()
    return flash_mla_with_kvcache(
        data.q,
        data.k_cache,
        data.block_table,
        data.cache_seqlens,
        case.dv,
        tile_scheduler_metadata,
        num_splits,
        causal=case.is_causal,
    )


def check_at_their_tolerances(case: DenseCase) -> None:
    data = dense_data(case)
    out, lse = run(case, data)
    expected, expected_lse = dense_reference(data, dv=case.dv, causal=case.is_causal, dtype=torch.float32)
    assert_close(out, expected, tolerance="flash_mla dense out")
    assert_close(lse, expected_lse, tolerance="flash_mla dense lse")


@pytest.mark.parametrize("case", REDUCED, ids=str)
def test_flash_mlas_grid_reduced(case: DenseCase) -> None:
    check_at_their_tolerances(case)


@pytest.mark.grid
@pytest.mark.parametrize("case", GRID, ids=str)
def test_flash_mlas_whole_grid(case: DenseCase) -> None:
    check_at_their_tolerances(case)


SIZES = {
    "values are the whole keys": {"d": 64, "dv": 64},
    "a value of one number": {"d": 24, "dv": 1},
    "widths of no vector": {"d": 45, "dv": 37},
    "pages of one token": {"page_tokens": 1},
    "pages of 256 tokens": {"page_tokens": 256},
    "a page size of no power of two": {"page_tokens": 61},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(5, 1), (6, 3)], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_any_size_against_float64(sizes: dict[str, int], heads: tuple[int, int], dtype: torch.dtype) -> None:
    chosen = {"d": 72, "dv": 56, "page_tokens": 16, "dtype": dtype} | sizes
    case = DenseCase(4, 3, 70, *heads, is_varlen=True, is_causal=True, have_zero_seqlen_k=True, **chosen)
    data = dense_data(case, seed=1)
    out, lse = run(case, data)
    expected, expected_lse = dense_reference(data, dv=case.dv, causal=True)
    assert_close(out, expected, tolerance=str(dtype).removeprefix("torch."))
    assert_close(lse, expected_lse, tolerance="lse")


@pytest.mark.parametrize("causal", [False, True])
def test_contexts_shorter_than_the_queries(causal: bool) -> None:
    case = DenseCase(5, 4, 9, 6, 2, is_varlen=False, is_causal=causal, d=40, dv=32, dtype=torch.float32)
    data = dense_data(case)
    lengths = torch.tensor([0, 1, 3, 4, 5], dtype=torch.int32)
    data = replace(data, cache_seqlens=lengths, block_table=data.block_table.where(lengths[:, None] > 0, 2147480000))
    out, lse = run(case, data)
    expected, expected_lse = dense_reference(data, dv=case.dv, causal=causal)
    assert_close(out, expected, tolerance="float32")
    assert_close(lse, expected_lse, tolerance="lse")
    empty = lse.transpose(1, 2) == torch.inf
    assert empty.any()
    assert not out[empty].any()


def test_inputs_of_any_strides_and_none_of_them_changed() -> None:
    case = DenseCase(3, 2, 50, 4, 2, is_varlen=True, is_causal=True, d=40, dv=32, page_tokens=16, dtype=torch.float32)
    data = dense_data(case)
    plain = run(case, replace(data, q=data.q.contiguous(), k_cache=data.k_cache.contiguous()))
    strided = DenseData(
        q=data.q.transpose(1, 2).contiguous().transpose(1, 2),
        k_cache=data.k_cache.transpose(0, 2).contiguous().transpose(0, 2),
        block_table=data.block_table.T.contiguous().T,
        cache_seqlens=data.cache_seqlens.repeat_interleave(2)[::2],
    )
    before = [tensor.clone() for tensor in vars(strided).values()]
    for actual, expected in zip(run(case, strided), plain, strict=True):
        assert_close(actual, expected, tolerance="exact")
    for now, then in zip(vars(strided).values(), before, strict=True):
        assert_close(now, then, tolerance="exact")


def test_the_scale_is_the_callers_or_that_of_the_keys() -> None:
    case = DenseCase(2, 1, 30, 4, 1, is_varlen=False, is_causal=False, d=40, dv=32, dtype=torch.float32)
    data = dense_data(case)
    inputs = (data.q, data.k_cache, data.block_table, data.cache_seqlens, case.dv)
    out, lse = flash_mla_with_kvcache(*inputs, *get_mla_metadata(), 2.5)
    expected, expected_lse = dense_reference(data, dv=case.dv, causal=False, scale=2.5)
    assert_close(out, expected, tolerance="float32")
    assert_close(lse, expected_lse, tolerance="lse")


def test_no_sequences() -> None:
    q, cache = torch.zeros(0, 2, 4, 40), torch.zeros(3, 16, 1, 40)
    table, lengths = torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    out, lse = flash_mla_with_kvcache(q, cache, table, lengths, 32, *get_mla_metadata())
    assert out.shape == (0, 2, 4, 32)
    assert lse.shape == (0, 4, 2)


SMALL = DenseCase(3, 2, 50, 4, 2, is_varlen=True, is_causal=True, d=40, dv=32, page_tokens=16, dtype=torch.float32)


def call(data: DenseData, metadata: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = (data.q, data.k_cache, data.block_table, data.cache_seqlens, SMALL.dv)
    return flash_mla_with_kvcache(*inputs, metadata, None, **{"causal": True} | options)


def test_metadata_serves_every_layer_of_a_step() -> None:
    metadata, _ = get_mla_metadata()
    for layer in range(3):
        data = replace(dense_data(SMALL), k_cache=dense_data(SMALL, seed=0).k_cache * (layer + 1))
        out, _ = call(data, metadata)
        assert_close(out, dense_reference(data, dv=SMALL.dv, causal=True)[0], tolerance="float32")


def test_metadata_as_earlier_releases_make_it() -> None:
    data = dense_data(SMALL)
    metadata, num_splits = get_mla_metadata(data.cache_seqlens, SMALL.s_q * SMALL.h_q // SMALL.h_kv, SMALL.h_kv)
    assert num_splits is None
    assert_close(call(data, metadata)[0], run(SMALL, data)[0], tolerance="exact")


def other_lengths(data: DenseData) -> DenseData:
    return replace(data, cache_seqlens=data.cache_seqlens - 1)


CHANGES = {
    "cache_seqlens": other_lengths,
    "batch size": lambda data: DenseData(data.q[:2], data.k_cache, data.block_table[:2], data.cache_seqlens[:2]),
    "queries of a sequence": lambda data: replace(data, q=data.q[:, :1]),
    "num_heads_q": lambda data: replace(data, q=data.q[:, :, :2]),
    "num_heads_k": lambda data: replace(data, k_cache=data.k_cache[:, :, :1]),
    "page size": lambda data: replace(data, k_cache=data.k_cache.repeat(1, 2, 1, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_metadata_refuses_another_step(name: str) -> None:
    data = dense_data(SMALL)
    metadata, _ = get_mla_metadata()
    call(data, metadata)
    with pytest.raises(StalePlanError, match=f"^{name}: expected .*Call get_mla_metadata"):
        call(CHANGES[name](data), metadata)
    call(data, metadata)


def test_metadata_refuses_another_mask() -> None:
    data = dense_data(SMALL)
    metadata, _ = get_mla_metadata()
    call(data, metadata)
    with pytest.raises(StalePlanError, match=r"^causal: "):
        call(data, metadata, causal=False)


@pytest.mark.parametrize("name", ["cache_seqlens", "num_q_tokens_per_head_k", "num_heads_k", "num_heads_q", "topk"])
def test_metadata_holds_its_callers_to_what_they_said(name: str) -> None:
    data = dense_data(SMALL)
    said = {"cache_seqlens": data.cache_seqlens + 1}.get(name, 5)
    metadata, _ = get_mla_metadata(**{name: said})
    with pytest.raises(StalePlanError, match=f"^{name}: "):
        call(data, metadata)
