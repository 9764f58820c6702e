"""Checks of arguments, each told in one sentence. Knows what a tensor must look like, not what it is for."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from latentkv.errors import OptionError, ShapeError, sentence

FLOATS = (torch.bfloat16, torch.float32)
INT32 = (torch.int32,)
FLOAT32 = (torch.float32,)


def check_tensor(
    name: str, value: object, *, shape: Sequence[int | str], dtypes: Sequence[torch.dtype], remedy: str = ""
) -> Tensor:
    """`value`, if it is a CPU tensor of this shape (letters stand for any size) and one of these dtypes; ShapeError."""
    if (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.dtype in dtypes
        and value.ndim == len(shape)
        and all(isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True))
    ):
        return value
    sizes = ", ".join(str(size) for size in shape)
    kinds = " or ".join(_name(dtype) for dtype in dtypes)
    raise ShapeError(sentence(name, expected=f"a CPU tensor [{sizes}] of {kinds}", got=_describe(value), remedy=remedy))


def check_optional(
    name: str, value: object, *, shape: Sequence[int | str], dtypes: Sequence[torch.dtype]
) -> Tensor | None:
    """`check_tensor` for what may also be None."""
    return None if value is None else check_tensor(name, value, shape=shape, dtypes=dtypes)


def check_values(name: str, values: Tensor | None, *, least: int, most: int, what: str) -> None:
    """Raise ShapeError unless every integer of `values` lies in least ... most; `what` says why these."""
    if values is None:
        return
    wrong = ((values < least) | (values > most)).nonzero()
    if wrong.numel():
        where = tuple(wrong[0].tolist())
        raise ShapeError(
            sentence(
                f"{name}[{', '.join(map(str, where))}]",
                expected=f"{least} to {most} ({what})",
                got=int(values[where]),
            )
        )


def check_adjacent(name: str, value: Tensor) -> None:
    """Raise ShapeError unless the last dimension is contiguous: a cache is read in place and never copied."""
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        got = f"stride {value.stride(-1)}"
        raise ShapeError(sentence(name, expected="a contiguous last dimension", got=got, remedy="Call .contiguous()."))


def check_number(name: str, value: object, *, remedy: str = "") -> float:
    """The finite number `value`. Raises OptionError for anything else; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise OptionError(sentence(name, expected="a finite number", got=repr(value), remedy=remedy))
    return float(value)


def check_flag(name: str, value: object) -> None:
    """Raise OptionError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise OptionError(sentence(name, expected="True or False", got=repr(value)))


def check_value_width(name: str, value: object, width: int) -> None:
    """Raise OptionError unless the value is a non-empty first stretch of the key's `width` numbers."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= width:
        raise OptionError(sentence(name, expected=f"1 to {width} (values are the first part of the keys)", got=value))


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    where = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{list(value.shape)} of {_name(value.dtype)}{where}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
