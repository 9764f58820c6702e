"""The generator must really poison what it says, and leave the context intact."""

from __future__ import annotations

import pytest
import torch

from latentkv.cache.layout import mla_row
from support.compare import assert_close
from support.hostile import HUGE_PAGES, awkward_lengths, hostile_case, strided_normal
from support.reference import absorbed_reference


@pytest.mark.parametrize("page_tokens", [1, 4, 64])
@pytest.mark.parametrize("mode", ["decode", "prefill", "chunk", "mix", "empty"])
def test_only_the_context_is_finite(page_tokens, mode):
    lengths = awkward_lengths(page_tokens)[mode]
    case = hostile_case(mla_row("bf16", kv_lora_rank=5, qk_rope_head_dim=3), lengths, page_tokens=page_tokens)
    written = case.cache.storage.isfinite().all(dim=-1).sum().item()
    assert written == sum(context for _, context in lengths)
    assert case.cache.storage[0].isnan().all()
    assert case.lengths == tuple(lengths)


def test_the_page_table_leads_to_the_context_and_past_it_to_huge_pages():
    case = hostile_case(mla_row("f32", kv_lora_rank=4, qk_rope_head_dim=0), [(1, 9), (1, 3)], page_tokens=4)
    rows = case.layer.rows[case.batch.page_table[0, :3].long()].reshape(-1, 4)[:9]
    assert_close(rows, case.contexts[0]["latent"].float(), tolerance="exact")
    assert set(case.batch.page_table[1, 1:].tolist()) <= set(HUGE_PAGES)
    assert not case.batch.page_table.is_contiguous()


def test_strided_normal_is_strided_between_poison():
    values = strided_normal(4, 3, 5)
    assert values.shape == (4, 3, 5)
    assert not values.is_contiguous()
    assert values.isfinite().all()


def test_the_reference_averages_what_it_sees():
    latent = torch.tensor([[1.0], [3.0], [8.0]], dtype=torch.float64)
    context = {"latent": latent, "rope": torch.zeros(3, 0, dtype=torch.float64)}
    out, lse = absorbed_reference(torch.zeros(2, 1, 1), [context], [(2, 3)], scale=1.0)
    assert out.flatten().tolist() == [2.0, 4.0]
    assert lse.exp().flatten().round(decimals=9).tolist() == [2.0, 3.0]
