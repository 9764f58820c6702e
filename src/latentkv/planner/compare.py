"""One cache against another, step by step: what the codes alone would save, and what scales and wider parts add back.

A headline such as "93.3 % smaller" multiplies two things: another attention, and fewer bits. Here each is told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.planner.footprint import code_bits, footprint, row_bytes
from latentkv.planner.model import Model

PLAIN = "bf16"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the comparison: this many bytes per token, over all layers, and what that is of the other cache."""

    label: str
    bytes_per_token: int
    share: float

    @property
    def smaller(self) -> float:
        """The part of the other cache that is saved; negative when this one is larger."""
        return 1 - self.share


@dataclass(frozen=True, slots=True)
class Comparison:
    """`model` in `format` against `other` in `other_format`; the last step is what is really stored."""

    model: str
    format: str
    other: str
    other_format: str
    other_bytes_per_token: int
    steps: tuple[Step, ...]


def compare(model: Model, other: Model, *, format: str, other_format: str = PLAIN) -> Comparison:
    """The caches of two models, per token. Raises OptionError for an unknown format."""
    base = footprint(other.layers, format=other_format).bytes_per_token
    own = footprint(model.layers, format=format).bytes_per_token
    sizes = [(f"both in {other_format}", footprint(model.layers, format=other_format).bytes_per_token)]
    sizes += _coded_steps(model, format)
    if format != other_format:
        scales = f"+ {own - sizes[-1][1]:,} B of scales: " if len(sizes) > 1 else ""
        sizes.append((f"{scales}{format} as stored", own))
    steps = tuple(Step(label, size, size / base) for label, size in sizes)
    return Comparison(model.name, format, other.name, other_format, base, steps)


def _coded_steps(model: Model, format: str) -> list[tuple[str, int]]:
    """What codes alone would take, and with the parts that are kept wider; nothing for a plain format."""
    rows = [(group.count, row_bytes(group.geometry, format)) for group in model.layers if group.geometry is not None]
    scales = sum(count * row.scales for count, row in rows)
    if not scales:
        return []
    codes = sum(count * row.codes_only for count, row in rows)
    wider = sum(count * row.wider_parts for count, row in rows)
    steps = [(f"{code_bits(format):g} bits for every number, no scales", codes)]
    if wider:
        steps.append((f"+ {wider:,} B for parts kept wider (RoPE in bf16)", codes + wider))
    return steps
