"""Weights as whole numbers in groups: `w = scale * (code - zero) + minimum`, with a scale for each output and group.

int8 codes run from -128 to 127 (zero 0), int4 codes from 0 to 15. A group is 16, 32, 64 or 128 neighbouring inputs.
Codes are packed once, in the order the native kernels read them; this file defines that order:

    panel = 16 outputs, the last panel filled up with zeros
    int8   [panels, in / 4, 16, 4]: byte b of an output is input 4 * i + b
    int4   [panels, in / 8, 16, 4]: the low half of byte b is input 8 * i + b, the high half input 8 * i + 4 + b
    scales [panels, in / group, 16], minima likewise

It knows no file format and no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from latentkv.errors import ConfigError, ShapeError, sentence

GroupedFormat = Literal["int8", "int4"]
GROUPS = (16, 32, 64, 128)
PANEL_OUTPUTS = 16
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INT4_ZERO = 8


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """A linear map's weight [out, in] as whole numbers in groups; see the module docstring for the packed order.

    codes:  int8 for int8, uint8 for int4, packed
    scales: float32 | bfloat16 | float16, packed; minima: None or of the same dtype
    shape:  (out, in); group: inputs per scale; zero: subtracted from every int4 code
    """

    format: GroupedFormat
    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    shape: tuple[int, int]
    group: int
    zero: int = 0

    @staticmethod
    def pack(
        codes: Tensor, scales: Tensor, minima: Tensor | None = None, *, format: GroupedFormat, zero: int = 0
    ) -> GroupedWeight:
        """From plain rows: codes [out, in] of any integer dtype, scales and minima [out, in / group].

        Raises ConfigError for a group that is none of GROUPS or does not divide `in`, codes outside the format's range,
        or scales and minima that are not finite; ShapeError for shapes that do not fit.
        """
        _check(codes, scales, minima, format=format, zero=zero)
        outputs, inputs = codes.shape
        padded = _padded(codes.to(torch.int16))
        per_step = 4 if format == "int8" else 8
        steps = padded.view(len(padded) // PANEL_OUTPUTS, PANEL_OUTPUTS, inputs // per_step, per_step).transpose(1, 2)
        packed = steps.to(torch.int8) if format == "int8" else (steps[..., :4] | steps[..., 4:] << 4).to(torch.uint8)
        return GroupedWeight(
            format=format,
            codes=packed.contiguous(),
            scales=_pack_values(scales),
            minima=None if minima is None else _pack_values(minima),
            shape=(outputs, inputs),
            group=inputs // scales.shape[1],
            zero=zero,
        )

    @property
    def plain_codes(self) -> Tensor:
        """[out, in] int16."""
        return self._rows(torch.arange(self.shape[0], device=self.codes.device))

    def plain_values(self, values: Tensor) -> Tensor:
        """Scales or minima as [out, in / group], in their dtype."""
        return values.transpose(1, 2).flatten(0, 1)[: self.shape[0]]

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] in `dtype`, computed in float32 with two roundings: of the product and of the sum."""
        return self.rows(torch.arange(self.shape[0], device=self.codes.device), dtype=dtype)

    def rows(self, index: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """The outputs `index` [n] int64 (an embedding's lookup): [n, in] in `dtype`."""
        panel, lane = index // PANEL_OUTPUTS, index % PANEL_OUTPUTS
        codes = (self._rows(index) - self.zero).view(len(index), self.shape[1] // self.group, self.group)
        wide = codes.float() * self.scales[panel, :, lane].float()[..., None]
        if self.minima is not None:
            wide = wide + self.minima[panel, :, lane].float()[..., None]
        return wide.flatten(1).to(dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Codes, scales and, if there are any, minima."""
        return (self.codes, self.scales) if self.minima is None else (self.codes, self.scales, self.minima)

    @property
    def size_bytes(self) -> int:
        """Memory of codes, scales and minima."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def _rows(self, index: Tensor) -> Tensor:
        packed = self.codes[index // PANEL_OUTPUTS, :, index % PANEL_OUTPUTS].to(torch.int16)
        if self.format == "int4":
            packed = torch.cat([packed & 15, packed >> 4], dim=-1)
        return packed.flatten(1)


def joined(weights: Sequence[GroupedWeight]) -> GroupedWeight:
    """The outputs of weights of one kind, each but the last with whole panels."""
    if len(weights) == 1:
        return weights[0]
    minima = [weight.minima for weight in weights if weight.minima is not None]
    return replace(
        weights[0],
        codes=torch.cat([weight.codes for weight in weights]),
        scales=torch.cat([weight.scales for weight in weights]),
        minima=torch.cat(minima) if minima else None,
        shape=(sum(weight.shape[0] for weight in weights), weights[0].shape[1]),
    )


def padded_rows(rows: int) -> int:
    """`rows` rounded up to whole panels."""
    return -(-rows // PANEL_OUTPUTS) * PANEL_OUTPUTS


def stack(weights: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """The outputs of all, one after the other; None unless they have one format, group, zero and kind of values."""
    first = weights[0]
    if any(_kind(weight) != _kind(first) for weight in weights):
        return None
    minima = [weight.plain_values(weight.minima) for weight in weights if weight.minima is not None]
    return GroupedWeight.pack(
        torch.cat([weight.plain_codes for weight in weights]),
        torch.cat([weight.plain_values(weight.scales) for weight in weights]),
        torch.cat(minima) if minima else None,
        format=first.format,
        zero=first.zero,
    )


def quantize(
    weight: Tensor, *, format: GroupedFormat, group: int = 32, scale_dtype: torch.dtype = torch.float16
) -> GroupedWeight:
    """Round a weight [out, in] of any float dtype to the nearest codes.

    int8: the group's largest size becomes 127. int4: codes run from the group's minimum to its maximum.
    Raises ConfigError for a group that does not divide `in`, NaN, infinities, or scales beyond `scale_dtype`.
    """
    if format not in get_args(GroupedFormat):
        raise ConfigError(sentence("format", expected="int8 or int4", got=repr(format)))
    if weight.ndim != 2 or group not in GROUPS or weight.shape[1] % group:
        expected = f"[out, in] with in divisible by a group of {', '.join(map(str, GROUPS))}"
        raise ConfigError(sentence("weight", expected=expected, got=f"{list(weight.shape)} and group {group}"))
    grouped = weight.float().reshape(weight.shape[0], weight.shape[1] // group, group)
    if not grouped.isfinite().all():
        raise ConfigError(sentence("weight", expected="finite numbers", got="NaN or infinity"))
    if format == "int8":
        scales = (grouped.abs().amax(dim=-1) / 127).to(scale_dtype)
        codes = _divided(grouped, scales).round().clamp(-127, 127)
        return GroupedWeight.pack(codes.flatten(1).to(torch.int16), scales, format="int8")
    minima = grouped.amin(dim=-1).to(scale_dtype)
    scales = ((grouped.amax(dim=-1) - minima.float()).clamp(min=0) / 15).to(scale_dtype)
    codes = _divided(grouped - minima.float()[..., None], scales).round().clamp(0, 15)
    return GroupedWeight.pack(codes.flatten(1).to(torch.int16), scales, minima, format="int4")


def _divided(values: Tensor, scales: Tensor) -> Tensor:
    wide = scales.float()[..., None]
    return torch.where(wide > 0, values / wide, 0.0)


def _padded(rows: Tensor) -> Tensor:
    missing = -rows.shape[0] % PANEL_OUTPUTS
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _pack_values(values: Tensor) -> Tensor:
    rows = _padded(values)
    panels = rows.reshape(len(rows) // PANEL_OUTPUTS, PANEL_OUTPUTS, values.shape[1])
    return panels.transpose(1, 2).contiguous()


def _kind(weight: GroupedWeight) -> tuple[object, ...]:
    return weight.format, weight.group, weight.zero, weight.shape[1], weight.scales.dtype, weight.minima is None


def _check(codes: Tensor, scales: Tensor, minima: Tensor | None, *, format: str, zero: int) -> None:
    if format not in get_args(GroupedFormat):
        raise ConfigError(sentence("format", expected="int8 or int4", got=repr(format)))
    if codes.ndim != 2 or scales.ndim != 2 or scales.shape[0] != codes.shape[0]:
        got = f"{list(codes.shape)} and {list(scales.shape)}"
        raise ShapeError(sentence("codes and scales", expected="[out, in] and [out, in / group]", got=got))
    inputs, groups = codes.shape[1], scales.shape[1]
    if groups == 0 or inputs % groups or inputs // groups not in GROUPS:
        expected = f"groups of {', '.join(map(str, GROUPS))} inputs"
        raise ConfigError(sentence("group", expected=expected, got=f"{inputs} inputs in {groups} groups"))
    if minima is not None and (minima.shape != scales.shape or minima.dtype != scales.dtype):
        raise ShapeError(sentence("minima", expected=f"{list(scales.shape)} {scales.dtype}", got=list(minima.shape)))
    lowest, highest = (-128, 127) if format == "int8" else (0, 15)
    if codes.numel() and not lowest <= int(codes.min()) <= int(codes.max()) <= highest:
        raise ConfigError(sentence("codes", expected=f"{lowest} to {highest}", got=f"{codes.min()} to {codes.max()}"))
    if not 0 <= zero <= (0 if format == "int8" else 15):
        raise ConfigError(sentence("zero", expected="0, or 0 to 15 for int4", got=zero))
    if scales.dtype not in SCALE_DTYPES:
        raise ConfigError(sentence("scales", expected="float32, bfloat16 or float16", got=scales.dtype))
    for name, values in (("scales", scales), ("minima", minima)):
        if values is not None and not values.isfinite().all():
            raise ConfigError(sentence(name, expected="finite numbers", got="NaN or infinity"))
