"""Mapping a weights file into memory, and viewing pieces of it as tensors. It knows no file format."""

from __future__ import annotations

import mmap
import sys
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from latentkv.errors import CheckpointError, sentence

# Linux's value; Python 3.11 does not export the constant.
_MAP_NORESERVE = 0x4000


def map_file(path: Path) -> mmap.mmap:
    """The whole file as memory; pages are read from disk when a tensor is first used, and can be dropped again.

    The map is private and writable because torch refuses read-only buffers; without NORESERVE, Linux would then count
    the file's full size as memory to be kept free and refuse a checkpoint larger than RAM.
    Raises CheckpointError when the file is missing, empty or not readable.
    """
    try:
        with path.open("rb") as file:
            if sys.platform == "linux":
                flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
                return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise CheckpointError(sentence(str(path), expected="a weights file", got="nothing there")) from None
    except ValueError:
        raise CheckpointError(
            sentence(str(path), expected="a weights file", got="an empty file", remedy="Download it again.")
        ) from None
    except OSError as error:
        raise CheckpointError(sentence(str(path), expected="a readable file", got=str(error))) from None


def view(buffer: mmap.mmap, *, offset_bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over `buffer` from `offset_bytes` on; the caller has checked that it fits."""
    count = prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if offset_bytes % dtype.itemsize:
        # Kernels load aligned vectors; a file written without padding is the one case that needs a copy.
        end = offset_bytes + count * dtype.itemsize
        return torch.frombuffer(bytearray(buffer[offset_bytes:end]), dtype=dtype).view(shape)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset_bytes).view(shape)
