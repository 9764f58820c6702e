"""How much memory a model's weights will take, from headers alone, and whether that much is there.

Tensors that are used as they lie in the file are mapped: they need no memory of their own, but a model that does not
fit reads them from disk again and again. What is converted or packed is copied, and has to fit.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from latentkv.errors import MemoryShortError, sentence
from latentkv.models.config import ModelConfig
from latentkv.models.model import ignorable_tensors
from latentkv.models.weights import WeightSource
from latentkv.planner.units import in_gb_and_gib

logger = logging.getLogger(__name__)

_ROUTER = re.compile(r"\.mlp\.gate\.weight$")
_KV_B = re.compile(r"\.kv_b_proj\.weight$")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of weights: copied into memory of their own, and used as they lie in the mapped file."""

    copied_bytes: int
    mapped_bytes: int


def footprint(source: WeightSource, config: ModelConfig, *, dtype: torch.dtype, keep_stored: bool) -> Footprint:
    """What `Model.read` with the same arguments will take. Reads no data."""
    ignorable = [re.compile(pattern) for pattern in ignorable_tensors(config)]
    copied = mapped = 0
    for name in source.names():
        if any(pattern.search(name) for pattern in ignorable):
            continue
        shape, storage = source.shape(name), source.storage(name)
        keeps = keep_stored and len(shape) == 2 and not _ROUTER.search(name)
        if keeps and storage.grouped_bytes is not None and not _KV_B.search(name):
            size_bytes, is_mapped = storage.grouped_bytes, storage.is_grouped_mapped
        else:
            held = torch.bfloat16 if keeps and storage.dtype is torch.bfloat16 else dtype
            size_bytes, is_mapped = prod(shape) * held.itemsize, storage.is_mapped and storage.dtype is held
        copied += 0 if is_mapped else size_bytes
        mapped += size_bytes if is_mapped else 0
    return Footprint(copied, mapped)


def available_bytes() -> int | None:
    """Memory that this process can still get without swapping: the machine's, or its control group's where that is
    less; None where the system does not say.
    """
    known = [size for size in (_machine_bytes(), _group_bytes()) if size is not None]
    return min(known) if known else None


def check_memory(
    source: WeightSource, config: ModelConfig, *, dtype: torch.dtype, keep_stored: bool, limit_bytes: int | None
) -> None:
    """Compare what weights will take with `limit_bytes` (None: what is available now).

    Raises MemoryShortError when the copied ones do not fit. Logs one warning when copied and mapped ones together do
    not: the model then runs, slowly.
    """
    room = available_bytes() if limit_bytes is None else limit_bytes
    if room is None:
        return
    needed = footprint(source, config, dtype=dtype, keep_stored=keep_stored)
    if needed.copied_bytes > room:
        raise MemoryShortError(
            sentence(
                f"{source.description}: memory for weights in {_name(dtype)}",
                expected=in_gb_and_gib(needed.copied_bytes),
                got=f"{in_gb_and_gib(room)} available",
                remedy=_remedy(source, config, dtype=dtype, keep_stored=keep_stored, room=room),
            )
        )
    if needed.copied_bytes + needed.mapped_bytes > room:
        logger.warning(
            "%s: %s of weights stay in the file, and with %s beside them do not fit into the %s of memory available: "
            "they are read from disk as they are used, and the model will be slow",
            source.description,
            in_gb_and_gib(needed.mapped_bytes),
            in_gb_and_gib(needed.copied_bytes),
            in_gb_and_gib(room),
        )


def _remedy(source: WeightSource, config: ModelConfig, *, dtype: torch.dtype, keep_stored: bool, room: int) -> str:
    ways = {"load it in bfloat16": (torch.bfloat16, keep_stored), "leave weights as stored": (dtype, True)}
    found = []
    for way, (narrower, kept) in ways.items():
        size_bytes = footprint(source, config, dtype=narrower, keep_stored=kept).copied_bytes
        if size_bytes <= room and (narrower, kept) != (dtype, keep_stored):
            found.append(f"{way} ({in_gb_and_gib(size_bytes)})")
    found += ["write it once with `latentkv quantize` (the result is mapped)", "or lift the limit (memory unlimited)"]
    return f"To go on, {', '.join(found)}."


def _machine_bytes() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _group_bytes() -> int | None:
    """The least that the process's control groups (a container, a service, and those around it) leave it."""
    root = Path("/sys/fs/cgroup")
    try:
        [own] = re.findall(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text("utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    groups = (root / own, *(root / own).parents)
    known = [_left_in(group) for group in groups if group.is_relative_to(root)]
    return min((size for size in known if size is not None), default=None)


def _left_in(group: Path) -> int | None:
    """Limit less use; the cached pages of files count as used in a group, and can be dropped."""
    try:
        limit, used = ((group / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        stat = (group / "memory.stat").read_text("ascii")
    except OSError:
        return None
    if not limit.isdecimal() or not used.isdecimal():
        return None
    cached = sum(int(size) for size in re.findall(r"^(?:in)?active_file (\d+)$", stat, re.MULTILINE))
    return max(0, int(limit) - int(used) + cached)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
