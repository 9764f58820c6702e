"""Writes a GQA or MHA checkpoint as the MLA checkpoint that computes the same function (see models/exact_mla.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from latentkv.convert.writing import complete_or_nothing, new_folder, write_shards
from latentkv.errors import OptionError, sentence
from latentkv.models import quantized_format
from latentkv.models.exact_mla import ExactMLASource, exact_mla_config
from latentkv.models.load import DTYPES, open_checkpoint
from latentkv.models.weights import WeightSource

Progress = Callable[[int, int], None]


def convert_exact(
    model: str | Path | None, output: str | Path, *, dtype: str = "auto", progress: Progress | None = None
) -> Path:
    """Write `model` (a folder, `.gguf` file, hub id, or None for the default) as MLA into the new folder `output`.

    dtype:    of the written tensors: "float32", "bfloat16", or "auto" for the one each tensor is stored in (float32
              where it was quantised)
    progress: called with (tensors written, tensors in all)

    Returns the folder. It appears only when it is complete: until then everything is in a temporary folder beside it.
    Raises OptionError when `output` exists or the dtype is unknown, UnsupportedModelError for a model that has latents
    already, and what opening the checkpoint raises.
    """
    target = new_folder(output)
    if dtype != "auto" and dtype not in DTYPES:
        raise OptionError(sentence("dtype", expected=f"auto or one of {', '.join(DTYPES)}", got=repr(dtype)))
    checkpoint = open_checkpoint(model)
    config = exact_mla_config(checkpoint.config)
    config.pop(quantized_format.ENTRY, None)
    source = ExactMLASource(checkpoint.source, checkpoint.config)
    with complete_or_nothing(target) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save(folder)
        write_shards(folder, _tensors(source, None if dtype == "auto" else DTYPES[dtype], progress))
    return target


def _tensors(source: WeightSource, dtype: torch.dtype | None, progress: Progress | None) -> Iterator[dict[str, Tensor]]:
    names = sorted(source.names())
    for count, name in enumerate(names, start=1):
        yield {name: source.get(name, dtype=dtype)}
        if progress is not None:
            progress(count, len(names))
