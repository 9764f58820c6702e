"""What machines can do at best: memory, read bandwidth and dense arithmetic rates, each with its source.

GPUs have the rates of their data sheet, without sparsity. Vendors state no such rates for CPUs: they are cores x base
clock x operations per cycle, and the bandwidth is channels x 8 bytes x transfers; boost clocks are higher. What is not
published is None, never guessed. Knows no models.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from latentkv.errors import OptionError, sentence

DEVICES_FILE = Path(__file__).parent / "data" / "devices.json"
PRECISIONS = ("fp32", "bf16", "fp8", "int8")
CHANNEL_BYTES = 8


@dataclass(frozen=True, slots=True)
class Source:
    """Where a device's numbers are from.

    kind:       "vendor" for a document of its maker, "secondary" for a report, "measured" for this machine
    checked_at: the public copy at which they were read; empty when they were not read again
    """

    kind: Literal["vendor", "secondary", "measured"]
    title: str
    address: str = ""
    checked_at: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one CPU socket.

    memory_bytes:      None for a CPU, whose memory is what was installed
    bandwidth_bytes_s: read rate of its memory
    rates:             dense operations per second by precision, a multiply-add counted as two; None where not published
    """

    name: str
    kind: Literal["gpu", "cpu"]
    memory_bytes: int | None
    bandwidth_bytes_s: float
    rates: Mapping[str, float | None]
    source: Source
    note: str = ""

    def rate(self, precision: str) -> float | None:
        """Operations per second in `precision`. Raises OptionError for a precision that does not exist."""
        if precision not in PRECISIONS:
            raise OptionError(sentence("precision", expected=f"one of {', '.join(PRECISIONS)}", got=repr(precision)))
        return self.rates.get(precision)

    @property
    def default_precision(self) -> str:
        """What attention is computed in: bf16 on GPUs, fp32 on CPUs (as latentkv's own kernels do)."""
        return "bf16" if self.kind == "gpu" else "fp32"

    def ridge(self, precision: str) -> float | None:
        """Operations per byte from which arithmetic, not memory, is the bound; None where the rate is not published."""
        rate = self.rate(precision)
        return None if rate is None else rate / self.bandwidth_bytes_s


def device_names() -> tuple[str, ...]:
    """All devices of the catalogue."""
    return tuple(_devices())


def find_device(name: str) -> Device:
    """The device of that name: in any case, or a part of it that only one name has ("h200", "rtx 4090", "9654").

    Raises OptionError with the candidates when there is none or more than one.
    """
    devices = _devices()
    words = _words(name)
    found = [device for key, device in devices.items() if words and set(words) <= set(_words(key))]
    found = found or [device for key, device in devices.items() if words and _begin(words, _words(key))]
    if len(found) == 1:
        return found[0]
    near = [device.name for device in found] or difflib.get_close_matches(name, devices, n=3, cutoff=0.3)
    remedy = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(devices)}."
    raise OptionError(sentence("device", expected="the name of one device", got=repr(name), remedy=remedy))


def _words(name: str) -> list[str]:
    return name.casefold().replace("-", " ").split()


def _begin(words: list[str], own: list[str]) -> bool:
    return all(any(part.startswith(word) for part in own) for word in words)


@functools.cache
def _devices() -> Mapping[str, Device]:
    records = json.loads(DEVICES_FILE.read_text("utf-8"))
    return MappingProxyType({record["name"]: _device(record) for record in records})


def _device(record: Mapping[str, Any]) -> Device:
    return Device(
        name=record["name"],
        kind=record["kind"],
        memory_bytes=record["memory_bytes"],
        bandwidth_bytes_s=_bandwidth(record),
        rates=MappingProxyType(_rates(record)),
        source=Source(**record["source"]),
        note=record["note"],
    )


def _bandwidth(record: Mapping[str, Any]) -> float:
    if "memory_channels" in record:
        return float(record["memory_channels"] * CHANNEL_BYTES * record["transfers_per_s"])
    return float(record["bandwidth_bytes_s"])


def _rates(record: Mapping[str, Any]) -> dict[str, float | None]:
    if "rates" in record:
        return dict(record["rates"])
    cycles = record["cores"] * record["clock_hz"] if record["clock_hz"] else None
    per_cycle = record["operations_per_cycle"]
    return {name: each * cycles if each and cycles else None for name, each in per_cycle.items()}
