"""Token-level sparse attention against loops that follow the definition, one token, head and slot at a time."""

from __future__ import annotations

import math

import pytest
import torch

from latentkv.ops.sparse import apply_sink, attend_sparse, first_slots
from support.compare import assert_close


def by_definition(
    query: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, scale: float, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, heads, _ = query.shape
    out = torch.zeros(tokens, heads, width, dtype=torch.float64)
    largest = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    lse = largest.clone()
    for token in range(tokens):
        for head in range(heads):
            chosen = [slot for slot in slots[token].tolist() if 0 <= slot < len(rows)]
            scores = [scale * float(query[token, head].double() @ rows[slot].double()) for slot in chosen]
            total = sum(math.exp(score) for score in scores)
            if chosen:
                largest[token, head], lse[token, head] = max(scores), math.log(total)
            for slot, score in zip(chosen, scores, strict=True):
                out[token, head] += math.exp(score) / total * rows[slot, :width].double()
    return out, largest, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_the_definition(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 24, generator=generator).to(dtype)
    query = torch.randn(6, 5, 24, generator=generator).to(dtype)
    slots = torch.randint(-4, 36, (6, 12), generator=generator)
    slots[1] = -1
    slots[2] = 7
    rows[29] = torch.nan
    slots[slots == 29] = -5
    results = attend_sparse(query, rows, slots, scale=0.3, value_width=16)
    expected = by_definition(query, rows, slots, 0.3, 16)
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual.float(), wanted, tolerance="float32")


def test_first_slots() -> None:
    slots = torch.tensor([[4, 5, 6], [7, 8, 9], [1, 2, 3]], dtype=torch.int32)
    lengths = torch.tensor([2, 0, 3], dtype=torch.int32)
    wanted = torch.tensor([[4, 5, -1], [-1, -1, -1], [1, 2, 3]], dtype=torch.int32)
    assert_close(first_slots(slots, lengths), wanted, tolerance="exact")
    assert_close(first_slots(slots, None), slots, tolerance="exact")


def test_a_sink_is_one_more_token_without_value() -> None:
    generator = torch.Generator().manual_seed(1)
    query, rows = torch.randn(3, 4, 8, generator=generator), torch.randn(9, 8, generator=generator)
    slots = torch.arange(9).expand(3, 9)
    out, _, lse = attend_sparse(query, rows, slots, scale=1.0, value_width=8)
    sink = torch.tensor([0.5, -2.0, 30.0, 0.0])
    scores = torch.cat([query @ rows.T, sink[:, None].expand(3, 4, 1)], dim=-1).double()
    assert_close(apply_sink(out, lse, sink), scores.softmax(dim=-1)[..., :9] @ rows.double(), tolerance="float32")


def test_sinks_at_infinity_and_empty_rows() -> None:
    out = torch.ones(2, 3, 4)
    out[1] = 0.0
    lse = torch.tensor([[0.5, -3.0, 2.0], [-torch.inf] * 3])
    sink = torch.tensor([-torch.inf, torch.inf, 2.0])
    wanted = torch.zeros(2, 3, 4)
    wanted[0, 0], wanted[0, 2] = 1.0, 0.5
    assert_close(apply_sink(out, lse, sink), wanted, tolerance="exact")
    assert_close(apply_sink(out, lse, None), out, tolerance="exact")
