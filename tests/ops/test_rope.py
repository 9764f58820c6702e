"""The rotation: both pairings, any frequencies, far positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from latentkv.errors import ShapeError
from latentkv.ops.rope import Rope, rotate
from support.compare import assert_close
from support.hostile import strided_normal

HEADS, DIM = 3, 8
POSITIONS = torch.tensor([1, 2, 17, 40, 5])


def plain_rope(*, interleaved: bool, dim: int = DIM, magnitude: float = 1.0) -> Rope:
    return Rope(10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim), interleaved, magnitude)


def rotate_by_hand(x: torch.Tensor, positions: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Each pair as a complex number times magnitude * exp(i * position * frequency), in float64."""
    half = x.shape[-1] // 2
    wide = x.double()
    out = torch.empty_like(wide)
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if rope.interleaved else (pair, pair + half)
        angle = positions.double() * rope.inverse_frequencies[pair]
        turn = torch.polar(torch.full_like(angle, rope.magnitude), angle)
        number = torch.complex(wide[..., first], wide[..., second]) * turn[:, None]
        out[..., first], out[..., second] = number.real, number.imag
    return out


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("positions", [POSITIONS, torch.tensor([99_999, 100_000, 131_071, 1_000_000, 0])])
@pytest.mark.parametrize("magnitude", [1.0, 1.3])
def test_rotation_is_a_complex_product_even_at_far_positions(interleaved, positions, magnitude):
    rope = plain_rope(interleaved=interleaved, magnitude=magnitude)
    x = strided_normal(len(positions), HEADS, DIM, seed=2)
    got = rotate(x, rope.angles(positions), interleaved=interleaved)
    assert_close(got, rotate_by_hand(x, positions, rope), tolerance="float32")


def test_interleaved_equals_deepseek_v2():
    rope = plain_rope(interleaved=True)
    x = strided_normal(len(POSITIONS), HEADS, DIM, seed=3)
    angle = POSITIONS.float()[:, None] * rope.inverse_frequencies.float()
    batched = x.transpose(0, 1)[None].contiguous()  # [1, H, T, R]
    expected, _ = apply_rotary_emb(batched, batched, torch.polar(torch.ones_like(angle), angle)[None])
    got = rotate(x, rope.angles(POSITIONS), interleaved=True)
    assert_close(got, expected[0].transpose(0, 1).double(), tolerance="float32")


def test_interleaved_equals_deepseek_v3_up_to_the_order_it_stores_pairs_in():
    rope = plain_rope(interleaved=True)
    x = strided_normal(len(POSITIONS), HEADS, DIM, seed=4)
    cos, sin = (torch.cat([part, part], dim=-1)[None] for part in rope.angles(POSITIONS))
    batched = x.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb_interleave(batched, batched, cos, sin)
    got = rotate(x, rope.angles(POSITIONS), interleaved=True)
    reordered = torch.cat([got[..., 0::2], got[..., 1::2]], dim=-1)
    assert_close(reordered, expected[0].transpose(0, 1).double(), tolerance="float32")


def test_half_equals_llama():
    rope = plain_rope(interleaved=False)
    x = strided_normal(len(POSITIONS), HEADS, DIM, seed=5)
    angle = POSITIONS.float()[:, None] * rope.inverse_frequencies.float()
    both = torch.cat([angle, angle], dim=-1)[None]
    batched = x.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(batched, batched, both.cos(), both.sin())
    got = rotate(x, rope.angles(POSITIONS), interleaved=False)
    assert_close(got, expected[0].transpose(0, 1).double(), tolerance="float32")


@given(
    st.lists(st.floats(0, 3), min_size=0, max_size=6),
    st.lists(st.integers(0, 200_000), max_size=4),
    st.booleans(),
    st.integers(0, 70_000),
)
def test_scores_depend_on_the_distance_only_for_any_frequencies(frequencies, positions, interleaved, shift):
    rope = Rope(torch.tensor(frequencies, dtype=torch.float64), interleaved)
    where = torch.tensor(positions, dtype=torch.int64)
    query, key = (strided_normal(len(positions), 2 * len(frequencies), seed=seed) for seed in (6, 7))

    def scores(offset: int) -> torch.Tensor:
        angles = rope.angles(where + offset)
        return rotate(query, angles, interleaved=interleaved) @ rotate(key, angles, interleaved=interleaved).T

    assert_close(scores(shift), scores(0).double(), tolerance="float32")


def test_angles_per_group_turn_each_group_by_its_own():
    groups = [plain_rope(interleaved=False, magnitude=magnitude) for magnitude in (1.0, 2.0)]
    cos, sin = (torch.stack(part, dim=1) for part in zip(*[rope.angles(POSITIONS) for rope in groups], strict=True))
    x = strided_normal(len(POSITIONS), 2, HEADS, DIM, seed=9)
    got = rotate(x, (cos, sin), interleaved=False)
    for index, rope in enumerate(groups):
        assert_close(got[:, index], rotate_by_hand(x[:, index], POSITIONS, rope), tolerance="float32")


def test_the_pairings_differ():
    x = torch.randn(1, DIM)
    angles = plain_rope(interleaved=True).angles(torch.tensor([3]))
    assert not torch.equal(rotate(x, angles, interleaved=True), rotate(x, angles, interleaved=False))


def test_bfloat16_is_rounded_once():
    rope = plain_rope(interleaved=True)
    x = strided_normal(len(POSITIONS), HEADS, DIM, seed=8, dtype=torch.bfloat16)
    got = rotate(x, rope.angles(POSITIONS), interleaved=True)
    assert_close(got, rotate_by_hand(x, POSITIONS, rope), tolerance="bfloat16")


def test_no_dimensions_and_no_tokens_are_legal():
    rope = Rope(torch.zeros(0, dtype=torch.float64), interleaved=True)
    assert rotate(torch.ones(3, 2, 0), rope.angles(torch.arange(3)), interleaved=True).shape == (3, 2, 0)
    rope = plain_rope(interleaved=False)
    none = torch.zeros(0, dtype=torch.int64)
    assert rotate(torch.ones(0, 2, DIM), rope.angles(none), interleaved=False).shape == (0, 2, DIM)


@pytest.mark.parametrize("shape", [(5, HEADS, DIM + 1), (5, HEADS, DIM * 2), (4, HEADS, DIM)])
def test_a_tensor_that_does_not_fit_the_angles_is_told(shape):
    with pytest.raises(ShapeError, match=r"x: expected \[5\] first and 8 last, to fit the angles, got \["):
        rotate(torch.zeros(shape), plain_rope(interleaved=True).angles(POSITIONS), interleaved=True)
