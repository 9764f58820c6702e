"""From what a user names to a model that computes: find the files, read configuration, weights and tokenizer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from latentkv.backends.guard import Guard
from latentkv.backends.kernels import Kernels, choose_kernels
from latentkv.backends.spare_kernels import with_spare
from latentkv.errors import OptionError, sentence
from latentkv.geometry import AttentionGeometry, Geometry, from_config
from latentkv.models.config import ModelConfig
from latentkv.models.config_file import read_config
from latentkv.models.exact_mla import ExactMLASource, exact_mla_config
from latentkv.models.gguf_config import config_from_gguf
from latentkv.models.locate import ModelFiles, find_model
from latentkv.models.memory import check_memory
from latentkv.models.model import Model
from latentkv.models.quantized_format import is_quantized
from latentkv.models.step import Execution
from latentkv.models.tokenizer import Tokenizer
from latentkv.models.weights import GGUFFile, GGUFSource, QuantizedSource, SafetensorsSource, WeightSource

Attention = Literal["mla", "gqa"]
Weights = Literal["auto", "stored", "dtype"]
Activations = Literal["float", "bf16", "auto"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    tokenizer: None when the checkpoint brings none (prompts are then token ids)
    original_geometry: the attention of the checkpoint itself, before it was seen as MLA
    """

    model: Model
    tokenizer: Tokenizer | None
    files: ModelFiles
    original_geometry: Geometry


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened but with no weights read: configuration, source of tensors, tokenizer."""

    files: ModelFiles
    config: dict[str, Any]
    source: WeightSource
    tokenizer: Tokenizer | None


def open_checkpoint(model: str | Path | None = None) -> Checkpoint:
    """Open a folder, a `.gguf` file, a hub id, or (None) the default model.

    Raises CheckpointError, ConfigError, TokenizerError or UnsupportedModelError, naming the file.
    """
    files = find_model(model)
    source: WeightSource
    tokenizer: Tokenizer | None
    if files.kind == "gguf":
        file = GGUFFile(files.path)
        config, source, tokenizer = config_from_gguf(file), GGUFSource(file), Tokenizer.from_gguf(file)
    else:
        config = read_config(files.path / "config.json")
        source = QuantizedSource(files.path) if is_quantized(config) else SafetensorsSource(files.path)
        has_tokenizer = (files.path / "tokenizer.json").is_file()
        tokenizer = Tokenizer.from_folder(files.path) if has_tokenizer else None
    if tokenizer is not None and tokenizer.eos_token_ids:
        config["eos_token_id"] = sorted(tokenizer.eos_token_ids)
    return Checkpoint(files, config, source, tokenizer)


def load_model(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    weights: Weights = "auto",
    activations: Activations = "float",
    attention: Attention = "mla",
    backend: str = "auto",
    deterministic: bool = False,
    integer_attention: bool = True,
    guard: Guard | None = None,
    memory_bytes: int | Literal["available", "unlimited"] = "available",
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model: a folder, a `.gguf` file, a hub id, or (None) the default model.

    dtype:     what is computed in: "float32", "bfloat16", or "auto", which is float32 when the weights in it take at
               most half of the machine's memory and bfloat16 otherwise
    weights:   how matrices are held: "stored" leaves bfloat16 and the whole numbers of a GGUF file as they are, with
               the same values; "dtype" converts all to `dtype`; "auto" is "stored" where native kernels run
    activations: what linear maps make of their input: "float" leaves it as it is; "bf16" rounds it to bfloat16 once, as
               torch and vLLM do for a bfloat16 model; "auto" lets kernels round it to int8 where it meets int8 and int4
               weights (docs/linear.md has the errors)
    attention: "mla" sees a GQA or MHA checkpoint as the MLA model that computes the same function; "gqa" runs it as
               it is, and is an error for a checkpoint that has latents already
    backend:   attention backend by name, or "auto"
    deterministic: of attention alone, see `attend`; the linear layers' sums are torch's
    integer_attention: `attend`'s `integer`: whether attention over a cache of codes may round queries and weights
    guard:     chooses the attention backend step by step, in place of `backend`, and replaces one that fails; other
               native kernels that raise are replaced by their references then
    memory_bytes: what the weights that are copied may take at most, "available" (what is free now), or "unlimited".
               Weights used as they lie in the file need not fit: they are mapped, and one line in the log says so
    progress:  called with (layers read, layers in all)

    Raises OptionError for an unknown option, MemoryShortError before anything is read, and what `open_checkpoint` and
    `Model.read` raise.
    """
    _check_options(attention, weights, activations, memory_bytes)
    kernels = kernels_for(activations)
    if guard is not None:
        kernels = with_spare(kernels, kernels_for(activations, name="portable"))
    checkpoint = open_checkpoint(model)
    original = from_config(checkpoint.config)
    config, source = checkpoint.config, checkpoint.source
    if isinstance(original, AttentionGeometry):
        if attention == "mla":
            config, source = exact_mla_config(config), ExactMLASource(source, config)
    elif attention == "gqa":
        raise OptionError(
            sentence(
                "attention", expected="mla for a model that has latents", got="gqa", remedy="Leave the option out."
            )
        )
    resolved, computed = ModelConfig.from_dict(config), resolve_dtype(dtype, source)
    keep_stored = weights == "stored" or (weights == "auto" and kernels.name != "portable")
    if memory_bytes != "unlimited":
        limit_bytes = None if memory_bytes == "available" else memory_bytes
        check_memory(source, resolved, dtype=computed, keep_stored=keep_stored, limit_bytes=limit_bytes)
    loaded = Model.read(
        source,
        resolved,
        dtype=computed,
        keep_stored=keep_stored,
        execution=Execution(
            kernels, backend=backend, deterministic=deterministic, integer=integer_attention, guard=guard
        ),
        progress=progress,
    )
    return LoadedModel(loaded, checkpoint.tokenizer, checkpoint.files, original)


def kernels_for(activations: Activations, *, name: str = "auto") -> Kernels:
    """The kernels called `name` (see `choose_kernels`) that round activations as `load_model` says."""
    return choose_kernels(name, integer=activations == "auto", narrow=activations == "bf16")


def _check_options(attention: str, weights: str, activations: str, memory_bytes: int | str) -> None:
    for name, value, allowed in (
        ("attention", attention, get_args(Attention)),
        ("weights", weights, get_args(Weights)),
        ("activations", activations, get_args(Activations)),
    ):
        if value not in allowed:
            raise OptionError(sentence(name, expected=" or ".join(allowed), got=repr(value)))
    if memory_bytes not in ("available", "unlimited") and (isinstance(memory_bytes, str) or memory_bytes < 0):
        raise OptionError(sentence("memory_bytes", expected="bytes, available or unlimited", got=repr(memory_bytes)))


def resolve_dtype(name: str, source: WeightSource) -> torch.dtype:
    """The dtype called `name`; "auto" as described at `load_model`."""
    if name != "auto":
        if name not in DTYPES:
            raise OptionError(sentence("dtype", expected=f"auto or one of {', '.join(DTYPES)}", got=repr(name)))
        return DTYPES[name]
    elements = sum(math.prod(source.shape(tensor)) for tensor in source.names())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.float32 if elements * 4 <= memory_bytes // 2 else torch.bfloat16
