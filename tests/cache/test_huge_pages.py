"""Memory for the cache: huge pages where there are any, and the same tensor everywhere."""

from __future__ import annotations

import pytest
import torch

from latentkv.cache.memory import LEAST_BYTES, allocate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("elements", [0, 1, LEAST_BYTES, LEAST_BYTES + 3])
def test_a_tensor_of_the_shape_that_can_be_written(elements: int, dtype: torch.dtype) -> None:
    tensor = allocate((2, elements), dtype)
    assert tensor.shape == (2, elements)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor.fill_(3)
    assert tensor.sum(dtype=torch.int64) == 6 * elements


def test_the_memory_lives_as_long_as_its_views() -> None:
    view = allocate((4, LEAST_BYTES), torch.uint8)[3]
    view.fill_(7)
    assert allocate((4, LEAST_BYTES), torch.uint8).numel() == 4 * LEAST_BYTES
    assert view.eq(7).all()
