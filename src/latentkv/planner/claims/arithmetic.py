"""The few sums that all claims are made of, taken from configurations of the catalogue. Knows no claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from latentkv.errors import OptionError, sentence
from latentkv.geometry import AttentionGeometry, MLAGeometry
from latentkv.planner.catalog import find_model
from latentkv.planner.footprint import footprint, row_bytes
from latentkv.planner.twins import twins

Condition = float | str
BITS_PER_BYTE = 8
KEY_DIM = 128


@dataclass(frozen=True, slots=True)
class Conditions:
    """The values that a claim's arithmetic depends on, by name."""

    values: Mapping[str, Condition]

    def number(self, name: str) -> float:
        """A condition that is a number. Raises OptionError when it is not above zero."""
        value = self.values[name]
        if isinstance(value, str) or value <= 0:
            raise OptionError(sentence(f"condition {name}", expected="a number above zero", got=repr(value)))
        return value

    def text(self, name: str) -> str:
        """A condition that is a name."""
        return str(self.values[name])


@dataclass(frozen=True, slots=True)
class Result:
    """One computed number: what it is, its unit, and the sum that gave it, with the numbers in it."""

    name: str
    value: float
    unit: str
    sum: str


Calculation = Callable[[Conditions], tuple[Result, ...]]
Side = Literal["", "baseline_"]


def mla(name: str) -> MLAGeometry:
    """The MLA of a model of the catalogue. Raises OptionError when it has another attention."""
    geometry = find_model(name).geometry
    if not isinstance(geometry, MLAGeometry):
        raise OptionError(sentence(f"model {name}", expected="one with MLA", got=geometry.kind.upper()))
    return geometry


def heads_of(name: str) -> AttentionGeometry:
    """The attention of a model of the catalogue that caches keys and values. Raises OptionError for MLA."""
    geometry = find_model(name).geometry
    if not isinstance(geometry, AttentionGeometry):
        raise OptionError(sentence(f"model {name}", expected="one with MHA, GQA or MQA", got="MLA"))
    return geometry


def elements(name: str) -> int:
    """Numbers cached per token over all layers of a model of the catalogue."""
    return footprint(find_model(name).layers).elements_per_token


def row_elements(name: str) -> int:
    """Numbers cached per token in one layer of a model of the catalogue."""
    return find_model(name).geometry.row_elements


def as_mha(name: str, *, key_dim: int = KEY_DIM) -> AttentionGeometry:
    """The MHA of the model's own heads, keys `key_dim` wide: a model that does not exist."""
    return twins(find_model(name).geometry, key_dim=key_dim)[0]


def as_gqa(name: str, groups: int) -> AttentionGeometry:
    """The GQA of the model's own heads with `groups` KV heads. Raises OptionError when they cannot be divided so."""
    geometry = find_model(name).geometry
    for twin in twins(geometry, groups=groups, key_dim=KEY_DIM):
        if twin.num_key_value_heads == groups:
            return twin
    expected = f"a divisor of {geometry.num_attention_heads} heads"
    raise OptionError(sentence("condition groups", expected=expected, got=groups))


def layer_bytes(name: str, format: str = "bf16") -> int:
    """Bytes per token in one layer of a model of the catalogue, scales included, as cache/layout.py stores them."""
    return row_bytes(find_model(name).geometry, format).total


def in_bytes(numbers: float, bits: float) -> float:
    """Bytes of so many numbers of `bits` bits, without scales."""
    return numbers * bits / BITS_PER_BYTE


def ratio(name: str, above: float, below: float, unit: str = "x") -> Result:
    """How many times `below` goes into `above`."""
    return Result(name, above / below, unit, f"{told(above)} / {told(below)}")


def share_saved(name: str, small: float, large: float) -> Result:
    """By how many percent `small` is below `large`."""
    return Result(name, 100 * (1 - small / large), "%", f"1 - {told(small)} / {told(large)}")


def told(value: float) -> str:
    """A number as it stands in a sum: whole where it is whole."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"
