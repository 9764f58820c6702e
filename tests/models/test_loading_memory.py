"""The estimate of memory is what loading then takes; what does not fit is refused before it is read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from latentkv.convert.quantize import quantize_checkpoint
from latentkv.engine.llm import LLM
from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import MemoryShortError, OptionError
from latentkv.models.config import ModelConfig
from latentkv.models.exact_mla import ExactMLASource, exact_mla_config
from latentkv.models.load import DTYPES, load_model, open_checkpoint
from latentkv.models.memory import Footprint, available_bytes, footprint
from latentkv.models.model import Model
from latentkv.models.weights import WeightSource
from support.tiny_models import FAMILIES, Family, save_model

MOE = next(
    family for family in FAMILIES if family.name == "deepseek-v2-lite (moe greedy, yarn mscale = mscale_all_dim)"
)
LLAMA = next(family for family in FAMILIES if family.classes == "Llama")
# Sizes that groups of 16 divide.
_WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "v_head_dim": 16}
WIDE = Family("wide", MOE.classes, dict(MOE.fields) | _WIDE)


def taken(source: WeightSource, config: ModelConfig, *, dtype: torch.dtype, keep_stored: bool) -> Footprint:
    """What loading really takes: a tensor is mapped when the source gives the same address twice."""
    model = Model.read(source, config, dtype=dtype, keep_stored=keep_stored)
    stored = set()
    for name in source.names():
        if source.storage(name).is_mapped:
            stored.add(source.get(name, dtype=None).untyped_storage().data_ptr())
        grouped = source.grouped(name)
        if grouped is not None and source.storage(name).is_grouped_mapped:
            stored |= {part.untyped_storage().data_ptr() for part in grouped.tensors}
    sizes = {True: 0, False: 0}
    for tensor in model.tensors():
        sizes[tensor.untyped_storage().data_ptr() in stored] += tensor.nbytes
    return Footprint(copied_bytes=sizes[False], mapped_bytes=sizes[True])


@pytest.mark.parametrize("keep_stored", [True, False])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8", "int4"])
def test_the_estimate_is_what_loading_takes(stored: str, dtype: str, keep_stored: bool, tmp_path: Path) -> None:
    save_model(WIDE, tmp_path / "float")
    folder = tmp_path / "float"
    if stored == "bfloat16":
        folder = tmp_path / "bfloat16"
        halved(tmp_path / "float", folder)
    elif stored in ("int8", "int4"):
        folder = tmp_path / stored
        quantize_checkpoint(tmp_path / "float", folder, weights=stored, group=16)
    checkpoint = open_checkpoint(folder)
    wish = {"dtype": DTYPES[dtype], "keep_stored": keep_stored}
    config = ModelConfig.from_dict(checkpoint.config)
    assert footprint(checkpoint.source, config, **wish) == taken(checkpoint.source, config, **wish)


@pytest.mark.parametrize("keep_stored", [True, False])
def test_the_estimate_knows_what_the_exact_conversion_copies(keep_stored: bool, tmp_path: Path) -> None:
    save_model(LLAMA, tmp_path / "gqa")
    checkpoint = open_checkpoint(tmp_path / "gqa")
    source, config = ExactMLASource(checkpoint.source, checkpoint.config), exact_mla_config(checkpoint.config)
    wish = {"dtype": torch.bfloat16, "keep_stored": keep_stored}
    assert footprint(source, ModelConfig.from_dict(config), **wish) == taken(
        source, ModelConfig.from_dict(config), **wish
    )


@pytest.mark.model
def test_the_estimate_knows_how_gguf_matrices_are_packed() -> None:
    checkpoint = open_checkpoint(None)
    wish = {"dtype": torch.float32, "keep_stored": True}
    source, config = ExactMLASource(checkpoint.source, checkpoint.config), exact_mla_config(checkpoint.config)
    estimate = footprint(source, ModelConfig.from_dict(config), **wish)
    assert estimate == taken(source, ModelConfig.from_dict(config), **wish)
    assert 80e6 < estimate.copied_bytes < 120e6


def test_too_little_memory_is_refused_with_what_is_needed_and_what_helps(tmp_path: Path) -> None:
    save_model(MOE, tmp_path / "model")
    halved(tmp_path / "model", tmp_path / "bfloat16")
    checkpoint = open_checkpoint(tmp_path / "bfloat16")
    config = ModelConfig.from_dict(checkpoint.config)
    needed = footprint(checkpoint.source, config, dtype=torch.float32, keep_stored=False).copied_bytes
    wish = {"dtype": "float32", "weights": "dtype"}
    with pytest.raises(MemoryShortError, match=r"expected .* KB .* To go on, load it in bfloat16 \(.*as stored \("):
        load_model(tmp_path / "bfloat16", memory_bytes=needed - 1, **wish)
    with pytest.raises(MemoryShortError, match=r"got 100 B available\. To go on, write it once"):
        load_model(tmp_path / "model", memory_bytes=100, dtype="bfloat16", weights="dtype")
    load_model(tmp_path / "bfloat16", memory_bytes=needed, **wish)
    load_model(tmp_path / "bfloat16", memory_bytes="unlimited", **wish)


def test_experts_beyond_memory_run_from_the_file_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(MOE, tmp_path / "model")
    halved(tmp_path / "model", tmp_path / "bfloat16")
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    texts = []
    for memory_bytes in (40_000, "unlimited"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="latentkv"):
            loaded = load_model(tmp_path / "bfloat16", dtype="float32", weights="stored", memory_bytes=memory_bytes)
        if memory_bytes == "unlimited":
            assert caplog.messages == []
        else:
            [line] = caplog.messages
            assert "stay in the file" in line
            assert "40.00 KB" in line
        texts.append(LLM(loaded.model).generate([[5, 17, 3]], params)[0].token_ids)
    assert texts[0] == texts[1]


def test_what_is_available_is_known_here() -> None:
    found = available_bytes()
    assert found is not None
    assert found > 2**20


@pytest.mark.parametrize("bad", ["much", -1])
def test_an_odd_limit_is_refused(bad: object) -> None:
    with pytest.raises(OptionError, match="memory_bytes"):
        load_model("nowhere", memory_bytes=bad)


def halved(folder: Path, target: Path) -> None:
    """The checkpoint in bfloat16."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, target / "model.safetensors")
