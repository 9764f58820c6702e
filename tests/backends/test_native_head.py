"""The native head form, with sizes that matrix tiles take and others: against float64, over poisoned caches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from latentkv.attend import request_for
from latentkv.backends import native_head
from latentkv.backends.base import Attended
from latentkv.backends.isa import available_isas
from latentkv.backends.native import NativeBackend
from latentkv.errors import ShapeError
from latentkv.ops.absorb import UpProjection
from support.compare import assert_close
from support.hostile import Hostile, awkward_lengths, hostile_case
from support.mla_sizes import MLASizes
from support.reference import mla_reference

every_isa = pytest.mark.parametrize("isa", available_isas())


# Whole tiles; several RoPE keys; none; and each width in turn one that tiles do not take.
SIZES = {
    "tiles": MLASizes(H=3, L=96, R=32, N=64, V=96),
    "several_rope_keys": MLASizes(H=4, L=32, R=64, N=32, V=32, groups=2),
    "no_rope": MLASizes(H=1, L=64, R=0, N=32, V=32),
    "no_nope": MLASizes(H=2, L=32, R=32, N=0, V=64),
    "odd_latent": MLASizes(H=2, L=72, R=32, N=32, V=32),
    "odd_key": MLASizes(H=2, L=64, R=32, N=24, V=32),
    "odd_rope": MLASizes(H=2, L=64, R=16, N=32, V=32),
    "odd_value": MLASizes(H=2, L=64, R=32, N=32, V=48),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(
    isa: str, query: Tensor, case: Hostile, up: UpProjection, *, causal: bool = True, scale: float = 0.1
) -> Attended:
    backend = NativeBackend(isa=isa)
    request = request_for(query, case.layer, case.batch, up=up, form="head")
    plan = backend.plan(request, case.batch)
    return backend.run(plan, request, query, case.layer, case.batch, scale=scale, causal=causal, up=up)


def assert_right(
    isa: str, sizes: MLASizes, case: Hostile, query: Tensor, up: UpProjection, *, causal: bool = True
) -> None:
    got = run(isa, query, case, up, causal=causal)
    options = {"scale": 0.1, "causal": causal, "rope_groups": sizes.groups}
    out, lse = mla_reference(query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, **options)
    assert_close(got.out, out, tolerance=str(query.dtype).removeprefix("torch."))
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("name", SIZES)
def test_every_boundary(name: str, isa: str) -> None:
    sizes = SIZES[name]
    case = hostile_case(
        sizes.row("bf16"), [lengths for mode in awkward_lengths(16).values() for lengths in mode], page_tokens=16
    )
    for causal in (True, False):
        assert_right(isa, sizes, case, sizes.query(case), sizes.up(), causal=causal)


@every_isa
@pytest.mark.parametrize("format", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query", [torch.float32, torch.bfloat16])
def test_every_type(query: torch.dtype, weight: torch.dtype, format: str, isa: str) -> None:
    sizes = SIZES["tiles"]
    case = hostile_case(sizes.row(format), 3 * awkward_lengths(32)["mix"], page_tokens=32)
    assert_right(isa, sizes, case, sizes.query(case, query), sizes.up(weight))


@every_isa
@pytest.mark.parametrize("page_tokens", [1, 16, 64, 256])
@pytest.mark.parametrize("stretch_bytes", [1, 200_000])
def test_stretches_of_every_page_size(
    stretch_bytes: int, page_tokens: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_head, "STRETCH_BYTES", stretch_bytes)
    sizes = SIZES["several_rope_keys"]
    case = hostile_case(
        sizes.row("bf16"), [(130, 470), (64, 64), (65, 129), (31, 33), (1, 257), (0, 3)], page_tokens=page_tokens
    )
    assert_right(isa, sizes, case, sizes.query(case), sizes.up())


@every_isa
def test_the_same_bits_for_any_threads(isa: str, threads: None) -> None:
    """One head of so many tokens that with more threads it is more pieces."""
    sizes = SIZES["no_rope"]
    case = hostile_case(sizes.row("bf16"), [(1200, 1300)], page_tokens=64)
    query, up = sizes.query(case), sizes.up()
    torch.set_num_threads(1)
    alone = run(isa, query, case, up)
    assert_right(isa, sizes, case, query, up)
    for count in (2, 5):
        torch.set_num_threads(count)
        got = run(isa, query, case, up)
        assert_close(got.out, alone.out, tolerance="exact")
        assert_close(got.lse, alone.lse, tolerance="exact")


@every_isa
@pytest.mark.parametrize("rising", [True, False])
def test_scores_far_apart(rising: bool, isa: str) -> None:
    """Later tokens outweigh all earlier ones by far more than a float32 exponent, or the other way around."""
    sizes = SIZES["no_nope"]
    case = hostile_case(sizes.row("bf16"), [(5, 200)], page_tokens=16)
    query = sizes.query(case).fill_(1.0)
    slope = torch.arange(200.0) * (1 if rising else -1)
    for token in range(200):
        row = case.layer.rows[case.batch.page_table[0, token // 16], token % 16]
        row[sizes.L :] = slope[token] * 8
    case.contexts[0]["rope"][:] = (slope[:, None] * 8).bfloat16().double()
    assert_right(isa, sizes, case, query, sizes.up())


@every_isa
@pytest.mark.parametrize("page", [-1, 10_000])
def test_pages_outside_the_cache(page: int, isa: str) -> None:
    sizes = SIZES["tiles"]
    case = hostile_case(sizes.row("bf16"), [(2, 40), (20, 40)], page_tokens=16)
    case.batch.page_table[1, 2] = page
    with pytest.raises(ShapeError, match=r"page_table\[1\]: expected pages 0 to"):
        run(isa, sizes.query(case), case, sizes.up())
