"""Rotated queries and written latent rows against float64, for every kernel this machine has."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import Kernels, choose_kernels, native_kernels
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.cache.layout import CacheLayout, mla_row
from latentkv.errors import ShapeError
from support.compare import assert_close
from support.hostile import strided_normal

FLOATS = (torch.float32, torch.bfloat16)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
FORMATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EPS = 1e-6
# Below, at and beyond whole vectors of 4, 8 and 16 pairs, halves of them included.
PAIRS = (0, 1, 2, 3, 5, 8, 11, 16, 17, 24, 32, 37)
TOKENS, HEADS = 7, 6

every_kernels = pytest.mark.parametrize("name", ["portable", *(f"native:{isa}" for isa in available_isas())])
every_isa = pytest.mark.parametrize("isa", available_isas())
both_pairings = pytest.mark.parametrize("interleaved", [True, False])


def some_angles(tokens: int, pairs: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine as strided views; no two tokens or pairs share an angle."""
    wide = torch.full((2, tokens, pairs + 3), torch.nan)
    angle = torch.linspace(-9, 9, tokens * pairs).view(tokens, pairs)
    wide[0, :, 2 : 2 + pairs], wide[1, :, 1 : 1 + pairs] = 1.1 * angle.cos(), 1.1 * angle.sin()
    return wide[0, :, 2 : 2 + pairs], wide[1, :, 1 : 1 + pairs]


def exact_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    wide = x.double()
    if weight is None:
        return wide
    return wide / (wide.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight.double()


def exact_rotation(x: Tensor, angles: tuple[Tensor, Tensor], *, groups: int, interleaved: bool) -> Tensor:
    """x [T, H, 2 * pairs] float64, every pair a complex number."""
    heads, pairs = x.shape[1], x.shape[2] // 2
    out = torch.empty_like(x)
    for head in range(heads):
        block = slice(head * groups // heads * pairs, (head * groups // heads + 1) * pairs)
        turn = torch.complex(angles[0][:, block].double(), angles[1][:, block].double())
        first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(pairs), slice(pairs, None))
        number = torch.complex(x[:, head, first], x[:, head, second]) * turn
        out[:, head, first], out[:, head, second] = number.real, number.imag
    return out


@every_kernels
@pytest.mark.parametrize("dtype", FLOATS)
@both_pairings
@pytest.mark.parametrize("weight_dtype", [None, *FLOATS])
@pytest.mark.parametrize(("groups", "nope"), [(1, 5), (2, 0), (3, 16)])
def test_rotated_query_is_exact_to_its_dtype(
    name: str, dtype: torch.dtype, interleaved: bool, weight_dtype: torch.dtype | None, groups: int, nope: int
) -> None:
    kernels = choose_kernels(name)
    for pairs in PAIRS:
        query = strided_normal(TOKENS, HEADS, nope + 2 * pairs, dtype=dtype)
        norm = None if weight_dtype is None else strided_normal(2 * pairs, seed=1, dtype=weight_dtype)
        angles = some_angles(TOKENS, groups * pairs)
        turned = exact_rotation(exact_norm(query[..., nope:], norm), angles, groups=groups, interleaved=interleaved)
        expected = torch.cat([query[..., :nope].double(), turned], dim=-1)
        got = kernels.rotate_query(
            query, norm=norm, eps=EPS, angles=angles, groups=groups, interleaved=interleaved, nope=nope
        )
        assert_close(got, expected, tolerance=NAMES[dtype])
    assert not kernels.fallbacks


@every_isa
@both_pairings
def test_rotation_in_place_touches_nothing_beside_its_heads(isa: str, interleaved: bool) -> None:
    wide = torch.full((4, 3, 40), torch.nan)
    heads = wide[1:3, :, 7:29]
    heads.copy_(torch.randn(2, 3, 22))
    kept = heads[..., :12].clone()
    kernels = native_kernels(isa)
    got = kernels.rotate_query(
        heads, norm=torch.ones(10), eps=EPS, angles=some_angles(2, 5), groups=1, interleaved=interleaved, nope=12
    )
    assert got.data_ptr() == heads.data_ptr()
    assert_close(got[..., :12], kept, tolerance="exact")
    assert not got.isnan().any()
    assert wide.isnan().sum() == wide.numel() - heads.numel()
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("shape", [(0, 4, 12), (3, 0, 12), (3, 4, 4)])
def test_nothing_to_rotate(name: str, shape: tuple[int, int, int]) -> None:
    kernels, query = choose_kernels(name), torch.randn(shape)
    expected, pairs = query.clone(), (shape[2] - 4) // 2
    angles = some_angles(shape[0], pairs)
    got = kernels.rotate_query(query, norm=None, eps=EPS, angles=angles, groups=1, interleaved=True, nope=4)
    assert_close(got, expected, tolerance="exact")


@every_isa
def test_rotation_with_two_threads_gives_the_same_bits(isa: str, two_threads: None) -> None:
    query, angles = torch.randn(200, 8, 128), some_angles(200, 32)
    kernels = native_kernels(isa)

    def rotated() -> Tensor:
        copy = query.clone()
        return kernels.rotate_query(copy, norm=None, eps=EPS, angles=angles, groups=1, interleaved=True, nope=64)

    got = rotated()
    torch.set_num_threads(1)
    assert_close(got, rotated(), tolerance="exact")


def test_queries_that_cannot_be_overwritten_go_to_the_reference() -> None:
    kernels, angles = choose_kernels("native"), some_angles(2, 4)
    repeated, leaf = torch.randn(2, 1, 8).expand(2, 3, 8), torch.randn(2, 3, 8, requires_grad=True)
    backward, half = torch.randn(8, 3, 2).transpose(0, 2), torch.randn(2, 3, 8).half()
    for query in (repeated, leaf, backward, half):
        before = query.clone()
        got = kernels.rotate_query(query, norm=None, eps=EPS, angles=angles, groups=1, interleaved=False, nope=0)
        want = exact_rotation(before.double(), angles, groups=1, interleaved=False)
        assert_close(got.float(), want.to(query.dtype).float(), tolerance="float32")
        assert_close(query, before, tolerance="exact")
    assert sorted(kernels.fallbacks.elements()) == [
        "rotate_query: gradients are wanted",
        "rotate_query: query: heads overlap or are not in order",
        "rotate_query: query: heads overlap or are not in order",
        "rotate_query: query: no native kernel for this dtype",
    ]


@every_kernels
def test_groups_and_angles_that_do_not_fit_a_query_are_refused(name: str) -> None:
    kernels, query = choose_kernels(name), torch.randn(2, 6, 12)
    before = query.clone()

    def rotate(pairs: int, *, groups: int = 1, nope: int = 4, tokens: int = 2) -> None:
        angles = some_angles(tokens, pairs)
        kernels.rotate_query(query, norm=None, eps=EPS, angles=angles, groups=groups, interleaved=True, nope=nope)

    with pytest.raises(ShapeError, match="groups: expected a divisor of the"):
        rotate(16, groups=4)
    for wrong in ({"pairs": 5}, {"pairs": 4, "tokens": 3}, {"pairs": 4, "groups": 2}, {"pairs": 4, "nope": 5}):
        with pytest.raises(ShapeError):
            rotate(**wrong)
    assert_close(query, before, tolerance="exact")


@dataclass(frozen=True)
class Row:
    """Sizes of a row, and of what is done to it."""

    latent: int
    rope: int
    groups: int = 1
    normed: bool = True


ROWS = (
    Row(512, 64),
    Row(37, 6),
    Row(1, 2, normed=False),
    Row(16, 0),
    Row(0, 34),
    Row(24, 30, groups=3),
    Row(5, 48, groups=4, normed=False),
)


def poisoned_layer(row: Row, format: str) -> LayerCache:
    layout = mla_row(format, kv_lora_rank=row.latent, qk_rope_head_dim=row.rope)
    cache = LatentCache(CacheLayout(layout, 2, 4), 5)
    cache.storage.fill_(torch.nan)
    return cache.layer(1)


def write(
    kernels: Kernels, row: Row, layer: LayerCache, slots: Tensor, kv: Tensor, *, interleaved: bool = True
) -> Tensor:
    """Write, and return what float64 expects of the rows."""
    angles = some_angles(len(kv), row.rope // 2)
    latent_norm = strided_normal(row.latent, seed=1) if row.normed else None
    rope_norm = strided_normal(row.rope // row.groups, seed=2, dtype=torch.bfloat16) if row.normed else None
    kernels.write_latent(
        layer,
        slots,
        kv,
        latent_norm=latent_norm,
        latent_eps=EPS,
        rope_norm=rope_norm,
        rope_eps=EPS,
        angles=angles,
        groups=row.groups,
        interleaved=interleaved,
    )
    blocks = kv[:, row.latent :].reshape(len(kv), row.groups, row.rope // row.groups)
    turned = exact_rotation(exact_norm(blocks, rope_norm), angles, groups=row.groups, interleaved=interleaved)
    return torch.cat([exact_norm(kv[:, : row.latent], latent_norm), turned.flatten(1)], dim=1)


@every_kernels
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
@both_pairings
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_written_latent_rows_are_exact_and_the_others_untouched(
    name: str, format: str, dtype: torch.dtype, interleaved: bool, row: Row
) -> None:
    layer, kernels, slots = poisoned_layer(row, format), choose_kernels(name), torch.tensor([19, 0, 7, 3, 8])
    kv = strided_normal(5, row.latent + row.rope, dtype=dtype)
    expected = torch.full((20, kv.shape[1]), torch.nan, dtype=torch.float64)
    expected[slots] = write(kernels, row, layer, slots, kv, interleaved=interleaved)
    assert_close(layer.rows.view(20, kv.shape[1]), expected, tolerance=NAMES[FORMATS[format]])
    assert not kernels.fallbacks


@every_isa
def test_latent_rows_with_two_threads(isa: str, two_threads: None) -> None:
    row = Row(512, 64)
    cache = LatentCache(CacheLayout(mla_row("bf16", kv_lora_rank=512, qk_rope_head_dim=64), 1), 5)
    slots = torch.randperm(320)[:300]
    expected = write(native_kernels(isa), row, cache.layer(0), slots, strided_normal(300, 576))
    assert_close(cache.layer(0).rows.view(320, 576)[slots], expected, tolerance="bfloat16")


@every_kernels
def test_no_latent_rows_to_write(name: str) -> None:
    row = Row(24, 8)
    layer = poisoned_layer(row, "f32")
    write(choose_kernels(name), row, layer, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32))
    assert layer.rows.isnan().all()


@every_kernels
@pytest.mark.parametrize("bad", [20, -1, 1 << 62])
def test_a_latent_slot_outside_the_cache_leaves_it_untouched(name: str, bad: int) -> None:
    row = Row(24, 8)
    layer = poisoned_layer(row, "bf16")
    with pytest.raises(IndexError, match=f"slots: expected 0 to 19, got {bad} at position 1"):
        write(choose_kernels(name), row, layer, torch.tensor([0, bad]), torch.zeros(2, 32))
    assert layer.rows.isnan().all()


@every_kernels
def test_latent_rows_that_do_not_fit_are_refused(name: str) -> None:
    kernels, layer, slots = choose_kernels(name), poisoned_layer(Row(24, 8), "f32"), torch.arange(2)
    for row, width in ((Row(24, 8), 31), (Row(24, 8, groups=3), 32), (Row(24, 8, groups=8), 32), (Row(24, 6), 32)):
        with pytest.raises(ShapeError):
            write(kernels, row, layer, slots, torch.zeros(2, width))
    with pytest.raises(ShapeError, match="slots"):
        write(kernels, Row(24, 8), layer, slots, torch.zeros(1, 32))
    assert layer.rows.isnan().all()


def test_latent_rows_that_the_kernel_declines_go_to_the_reference() -> None:
    kernels, row = choose_kernels("native"), Row(24, 8)
    spread, half = torch.tensor([3, 99, 5])[::2], torch.randn(2, 32).half()
    for slots, kv in ((spread, torch.randn(2, 32)), (torch.tensor([3, 5]), half)):
        layer = poisoned_layer(row, "f32")
        expected = write(kernels, row, layer, slots, kv)
        assert_close(layer.rows.view(20, 32)[[3, 5]], expected, tolerance="float32")
    assert sorted(kernels.fallbacks.elements()) == [
        "write_latent: kv: no native kernel for this dtype",
        "write_latent: slots: strided",
    ]
