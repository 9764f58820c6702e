"""The rotation against Hadamard matrices written out, and that it changes no result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentkv.cache.rotation import rotate, rotation_blocks
from latentkv.ops.absorb import UpProjection, absorb_query, expand_output
from support.compare import assert_close

WIDTHS = (1, 2, 7, 24, 192, 512, 576)


def matrix(width: int) -> Tensor:
    """Q in float64, from Kronecker products of [[1, 1], [1, -1]]."""
    blocks = []
    for bit in reversed(range(width.bit_length())):
        if width >> bit & 1:
            block = torch.ones(1, 1, dtype=torch.float64)
            for _ in range(bit):
                block = torch.kron(block, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
            blocks.append(block / 2 ** (bit / 2))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(
    ("width", "blocks"), [(0, []), (1, [(0, 1)]), (192, [(0, 128), (128, 64)]), (7, [(0, 4), (4, 2), (6, 1)])]
)
def test_blocks(width: int, blocks: list[tuple[int, int]]) -> None:
    assert list(rotation_blocks(width)) == blocks
    assert rotate(torch.ones(2, width)).shape == (2, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_the_orthogonal_matrix_it_says(width: int) -> None:
    q = matrix(width)
    identity = torch.eye(width, dtype=torch.float64)
    assert (q @ q.T - identity).abs().max() < 1e-12
    x = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(width))
    before = x.clone()
    assert_close(rotate(x), x.double() @ q.T, tolerance="float32")
    assert_close(rotate(rotate(x)), x, tolerance="float32")
    assert torch.equal(x, before)


def test_an_outlier_is_spread_evenly() -> None:
    x = torch.zeros(1, 512)
    x[0, 100] = 512**0.5
    assert (rotate(x).abs() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("width", WIDTHS)
def test_rotated_up_projections_undo_rotated_latents(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    up = UpProjection(*torch.randn(2, 3, 5, width, generator=generator).unbind(0))
    latent, query = torch.randn(4, width, generator=generator), torch.randn(4, 3, 5, generator=generator)
    scores = absorb_query(query, up.rotated().w_uk) @ rotate(latent).T
    assert_close(
        scores * width**-0.5,
        absorb_query(query, up.w_uk).double() @ latent.double().T * width**-0.5,
        tolerance="float32",
    )
    mixed = torch.randn(4, 3, width, generator=generator) * width**-0.5
    assert_close(
        expand_output(rotate(mixed), up.rotated().w_uv),
        expand_output(mixed.double(), up.w_uv.double()),
        tolerance="float32",
    )
