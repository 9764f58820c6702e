"""An exact conversion on disk: it reloads, computes the original's logits, and is complete or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentkv.convert import writing
from latentkv.convert.exact import convert_exact
from latentkv.errors import OptionError, UnsupportedModelError
from latentkv.geometry import MLAGeometry
from latentkv.models.load import load_model
from support.compare import assert_close
from support.paged import Sequences
from support.tiny_models import GQA_FAMILIES, MLA_FAMILIES, VOCAB, Family, save_model

every_gqa_family = pytest.mark.parametrize("family", GQA_FAMILIES, ids=lambda family: family.name)


@every_gqa_family
def test_converted_checkpoint_reloads_with_the_logits_of_the_original(family: Family, tmp_path: Path) -> None:
    theirs = save_model(family, tmp_path / "gqa")
    convert_exact(tmp_path / "gqa", tmp_path / "mla")
    loaded = load_model(tmp_path / "mla", dtype="float32")
    assert isinstance(loaded.model.geometry, MLAGeometry)
    tokens = torch.randint(0, VOCAB, (50,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    sequences = Sequences(loaded.model)
    logits = [sequences.run([(0, chunk)])[0] for chunk in tokens.split([30, 1, 19])]
    assert_close(torch.cat(logits), expected, tolerance="logits")


def test_shards_are_indexed_and_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(GQA_FAMILIES[0], tmp_path / "gqa")
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    convert_exact(tmp_path / "gqa", tmp_path / "mla", dtype="bfloat16")
    index = json.loads((tmp_path / "mla" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert load_model(tmp_path / "mla").model.num_parameters > 0


def test_an_output_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    save_model(GQA_FAMILIES[0], tmp_path / "gqa")
    (tmp_path / "mla").mkdir()
    (tmp_path / "mla" / "mine").write_text("precious")
    with pytest.raises(OptionError, match="does not exist yet"):
        convert_exact(tmp_path / "gqa", tmp_path / "mla")
    assert (tmp_path / "mla" / "mine").read_text() == "precious"


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    save_model(GQA_FAMILIES[0], tmp_path / "gqa")

    def interrupt(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_exact(tmp_path / "gqa", tmp_path / "out" / "mla", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_has_latents_is_refused(tmp_path: Path) -> None:
    save_model(MLA_FAMILIES[0], tmp_path / "mla")
    with pytest.raises(UnsupportedModelError, match="has latents already"):
        convert_exact(tmp_path / "mla", tmp_path / "again")


@pytest.mark.model
def test_the_default_model_converts_with_its_tokenizer_and_chat_template(tmp_path: Path) -> None:
    original = load_model(attention="gqa", dtype="float32", activations="float")
    convert_exact(None, tmp_path / "mla", dtype="float32")
    converted = load_model(tmp_path / "mla", dtype="float32")
    assert original.tokenizer is not None
    assert converted.tokenizer is not None
    messages = [{"role": "user", "content": "Name three rivers in Europe. ¿Ríos? 川"}]
    ids = original.tokenizer.encode_chat(messages)
    assert converted.tokenizer.encode_chat(messages) == ids
    assert converted.tokenizer.encode("plain text") == original.tokenizer.encode("plain text")
    assert converted.tokenizer.eos_token_ids == original.tokenizer.eos_token_ids
    expected, actual = (Sequences(one.model).run([(0, torch.tensor(ids))])[0] for one in (original, converted))
    assert_close(actual, expected, tolerance="logits")
