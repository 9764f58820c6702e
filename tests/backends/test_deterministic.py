"""Deterministic attention: a sequence's bits alone, in company, and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.attend import attend, plan_attend, request_for
from latentkv.backends import native_head
from latentkv.backends.base import Attended, Backend, Form
from latentkv.backends.isa import available_isas
from latentkv.backends.native import NativeBackend
from latentkv.backends.portable import PortableBackend
from latentkv.cache.batch import Batch
from latentkv.cache.layout import kv_row, mla_row
from latentkv.errors import StalePlanError
from latentkv.ops.absorb import UpProjection
from support.compare import assert_close
from support.hostile import Hostile, hostile_case, strided_normal

# Rows of whole matrix tiles. Contexts that are cut between threads, chunks that fill tiles and single tokens, whose
# sums could take other orders.
LONG = [(1, 2100), (3, 1500), (0, 9), (1, 1), (40, 1000), (1, 700)]
PAGE_TOKENS = 64
HEADS, LATENT, ROPE, NOPE, VALUE = 5, 64, 32, 24, 20

every_isa = pytest.mark.parametrize("isa", available_isas())


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def mla_case() -> Hostile:
    return hostile_case(mla_row("bf16", kv_lora_rank=LATENT, qk_rope_head_dim=ROPE), LONG, page_tokens=PAGE_TOKENS)


def up_projection() -> UpProjection:
    both = strided_normal(HEADS * (NOPE + VALUE), LATENT, seed=7) * LATENT**-0.5
    return UpProjection.from_kv_b_proj(both, num_heads=HEADS, qk_nope_head_dim=NOPE)


def run(
    backend: Backend, query: Tensor, case: Hostile, *, up: UpProjection | None = None, form: Form = "auto"
) -> Attended:
    request = request_for(query, case.layer, case.batch, up=up, form=form, deterministic=True)
    plan = backend.plan(request, case.batch)
    return backend.run(plan, request, query, case.layer, case.batch, scale=0.1, causal=True, up=up)


def with_only(case: Hostile, chosen: list[int]) -> Hostile:
    """The case with these sequences alone, in this order."""
    pages = [case.batch.page_table[i, : -(-LONG[i][1] // PAGE_TOKENS)].tolist() for i in chosen]
    batch = Batch.build(
        query_lens=[LONG[i][0] for i in chosen],
        context_lens=[LONG[i][1] for i in chosen],
        pages=pages,
        page_tokens=PAGE_TOKENS,
    )
    return replace(case, batch=batch)


def assert_same_bits(
    backend: Backend,
    query: Tensor,
    case: Hostile,
    *,
    counts: tuple[int, ...] = (2, 3, 1),
    up: UpProjection | None = None,
    form: Form = "auto",
) -> None:
    """Every sequence alone, on one count of threads each, and all in reverse on every count, against all on one."""
    torch.set_num_threads(1)
    together = run(backend, query, case, up=up, form=form)
    starts = case.batch.query_start.tolist()
    alone = [([index], counts[index % len(counts)]) for index in range(len(LONG))]
    for chosen, count in (*alone, *((list(reversed(range(len(LONG)))), count) for count in counts)):
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen])
        torch.set_num_threads(count)
        got = run(backend, query[rows], with_only(case, chosen), up=up, form=form)
        assert_close(got.out, together.out[rows], tolerance="exact")
        assert_close(got.lse, together.lse[rows], tolerance="exact")


@every_isa
@pytest.mark.parametrize("form", ["latent", "head", "auto"])
def test_mla(form: Form, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head form's expanded context here takes several stretches."""
    monkeypatch.setattr(native_head, "STRETCH_BYTES", 640 * (NOPE + ROPE + VALUE) * 4)
    case = mla_case()
    query = strided_normal(
        case.batch.num_tokens, HEADS, NOPE + ROPE, seed=11, dtype=torch.bfloat16 if form == "auto" else torch.float32
    )
    assert_same_bits(NativeBackend(isa=isa), query, case, up=up_projection(), form=form)


@every_isa
def test_absorbed_queries(isa: str) -> None:
    case = mla_case()
    query = strided_normal(case.batch.num_tokens, HEADS, LATENT + ROPE, seed=13)
    assert_same_bits(NativeBackend(isa=isa), query, case)


@every_isa
@pytest.mark.parametrize("groups", [1, 3])
def test_grouped_query_attention(groups: int, isa: str) -> None:
    row = kv_row("f32", num_key_value_heads=groups, head_dim=16, v_head_dim=24)
    case = hostile_case(row, LONG, page_tokens=PAGE_TOKENS)
    assert_same_bits(NativeBackend(isa=isa), strided_normal(case.batch.num_tokens, 6, 16, seed=17), case)


def test_portable_in_any_company() -> None:
    case = mla_case()
    query = strided_normal(case.batch.num_tokens, HEADS, NOPE + ROPE, seed=11)
    assert_same_bits(PortableBackend(), query, case, counts=(1,), up=up_projection())


def test_attend_takes_the_option_and_its_plan() -> None:
    case, up = mla_case(), up_projection()
    query = strided_normal(case.batch.num_tokens, HEADS, NOPE + ROPE, seed=11)
    torch.set_num_threads(3)
    first = attend(query, case.layer, case.batch, scale=0.1, up=up, deterministic=True)
    plan = plan_attend(request_for(query, case.layer, case.batch, up=up, deterministic=True), case.batch)
    planned = attend(query, case.layer, case.batch, scale=0.1, up=up, deterministic=True, plan=plan)
    assert_close(planned.out, first.out, tolerance="exact")
    alone = with_only(case, [0])
    assert_close(
        attend(query[:1], alone.layer, alone.batch, scale=0.1, up=up, deterministic=True).out,
        first.out[:1],
        tolerance="exact",
    )
    with pytest.raises(StalePlanError, match="deterministic=True"):
        attend(query, case.layer, case.batch, scale=0.1, up=up, plan=plan)
