"""How a checkpoint that latentkv quantised says so: names of tensors, and the entry in `config.json`. Needs no torch.

A matrix `NAME` [out, in] is stored as four tensors, codes and values in the packed order of `ops/quantized.py`:

    NAME.codes    int8 (format int8) or uint8 (format int4, two codes in a byte)
    NAME.scales   [panels, in / group, 16]
    NAME.minima   likewise, int4 only: w = scale * code + minimum; int8: w = scale * code
    NAME.shape    int64 [2]: out and in

Everything else is an ordinary tensor under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentkv.errors import CheckpointError, sentence

METHOD = "latentkv"
VERSION = 1
CODES, SCALES, MINIMA, SHAPE = ".codes", ".scales", ".minima", ".shape"
SUFFIXES = (CODES, SCALES, MINIMA, SHAPE)
ENTRY = "quantization_config"


def entry(*, weights: str, group: int) -> dict[str, Any]:
    """The configuration's entry for what `latentkv quantize` writes."""
    return {"quant_method": METHOD, "version": VERSION, "weights": weights, "group": group}


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is of a checkpoint in this format.

    Raises CheckpointError for another version of it: its tensors might be read as something else.
    """
    found = config.get(ENTRY)
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return False
    if found.get("version") != VERSION:
        raise CheckpointError(
            sentence(
                "quantised checkpoint",
                expected=f"version {VERSION} of the format",
                got=repr(found.get("version")),
                remedy="Quantise the original again with this latentkv, or install the one that wrote it.",
            )
        )
    return True
