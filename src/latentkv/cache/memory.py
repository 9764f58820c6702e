"""Memory for the cache: on Linux in huge pages, where the system grants them.

Pages of the cache are read in any order. In memory pages of 4 KiB each line asked for ahead then waits for an address
translation first, and reading a context takes up to 1.4 times as long.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

# Below the size of a huge page there is nothing to gain.
LEAST_BYTES = 2 * 2**20


def allocate(shape: Sequence[int], dtype: torch.dtype, *, device: torch.device | str = "cpu") -> Tensor:
    """A tensor of this shape that nobody has written yet; memory is taken when it is first written."""
    size_bytes = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size_bytes < LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
