"""Writes a GQA or MHA checkpoint as the MLA checkpoint that computes the same function (see models/exact_mla.py)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentkv.errors import OptionError, sentence
from latentkv.models.exact_mla import ExactMLASource, exact_mla_config
from latentkv.models.load import DTYPES, open_checkpoint
from latentkv.models.weights import WeightSource

SHARD_BYTES = 4 * 2**30
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
    target = Path(output)
    if target.exists():
        raise OptionError(
            sentence("output", expected="a folder that does not exist yet", got=str(target), remedy="Choose another.")
        )
    if dtype != "auto" and dtype not in DTYPES:
        raise OptionError(sentence("dtype", expected=f"auto or one of {', '.join(DTYPES)}", got=repr(dtype)))
    checkpoint = open_checkpoint(model)
    config = exact_mla_config(checkpoint.config)
    source = ExactMLASource(checkpoint.source, checkpoint.config)
    with _complete_or_nothing(target) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save(folder)
        _write_shards(source, folder, None if dtype == "auto" else DTYPES[dtype], progress)
    return target


@contextmanager
def _complete_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it at the end, or is removed if anything goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_shards(source: WeightSource, folder: Path, dtype: torch.dtype | None, progress: Progress | None) -> None:
    names = sorted(source.names())
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    for count, name in enumerate(names, start=1):
        # A tensor may be a view of a mapped file or share storage with another: the format wants each on its own.
        shard[name] = source.get(name, dtype=dtype).clone()
        if progress is not None:
            progress(count, len(names))
        if count == len(names) or sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            save_file(shard, folder / _shard_name(len(shards)), metadata={"format": "pt"})
            shards.append(list(shard))
            shard = {}
    _name_shards(folder, shards)


def _shard_name(index: int) -> str:
    return f"shard-{index}.safetensors"


def _name_shards(folder: Path, shards: list[list[str]]) -> None:
    """Give the files the names that Hugging Face checkpoints have, with an index when there are several."""
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, Any] = {}
    for index, names in enumerate(shards):
        final = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        (folder / _shard_name(index)).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n")
