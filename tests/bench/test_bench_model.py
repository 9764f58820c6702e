"""The end-to-end benchmark runs what it says: the peer has the same weights, contexts are found and not recomputed."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

from latentkv.bench.model import Case, OurEngine, as_record, measure_model
from latentkv.bench.peers import TransformersPeer
from latentkv.bench.random_model import CONFIG, RandomSource, shapes_of
from latentkv.bench.subject import Subject, open_subject
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import layout_for
from latentkv.errors import UnsupportedModelError
from latentkv.models.config import ModelConfig
from latentkv.models.model import Model
from support.compare import assert_close
from support.tiny_models import FAMILIES, save_model

TINY = dict(CONFIG) | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}


def subject(config: dict[str, object] = TINY) -> Subject:
    source = RandomSource(config)
    model = Model.read(source, ModelConfig.from_dict(config), dtype=torch.float32, keep_stored=True)
    return Subject("tiny", model, config, source)


def our_logits(model: Model, prompt: list[int]) -> torch.Tensor:
    layout = layout_for(model.geometry, "f32")
    pages = list(range(layout.pages_for(len(prompt))))
    batch = Batch.build(query_lens=[len(prompt)], context_lens=[len(prompt)], pages=[pages], page_tokens=64)
    rows = torch.arange(len(prompt))
    return model.forward(torch.tensor(prompt), batch, LatentCache(layout, len(pages)), logit_rows=rows)


def test_the_random_model_has_the_size_that_it_is_known_by() -> None:
    assert sum(prod(shape) for shape in shapes_of(CONFIG).values()) == 198_208_512


def test_the_same_seed_gives_the_same_random_model() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    first, second, other = (RandomSource(TINY, seed=seed).get(name, dtype=None) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_peer_computes_the_same_logits() -> None:
    one = subject()
    [peer] = one.peers(["float32"])
    prompt = [5, 17, 255, 3, 3, 250]
    with torch.inference_mode():
        theirs = peer._model(torch.tensor([prompt])).logits[0]
    assert_close(our_logits(one.model, prompt), theirs, tolerance="logits")


@pytest.mark.model
def test_the_peer_of_the_default_model_computes_the_same_logits() -> None:
    one = open_subject("default", dtype="float32")
    [peer] = one.peers(["float32"])
    prompt = [5, 17, 255, 3, 3, 250]
    with torch.inference_mode():
        theirs = peer._model(torch.tensor([prompt])).logits[0]
    assert_close(our_logits(one.model, prompt), theirs, tolerance="logits")


def test_a_filled_cache_counts_as_context() -> None:
    [peer] = subject().peers(["bfloat16"])
    past = peer._cache(40)
    assert past.get_seq_length() == 40
    assert peer.decode(context_tokens=40, tokens=2) > 0
    assert peer.prefill([1, 2, 3], context_tokens=40) > 0


def test_a_mixture_of_experts_has_no_peer(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if "n_routed_experts" in family.fields)
    save_model(family, tmp_path / "moe")
    one = open_subject(str(tmp_path / "moe"))
    with pytest.raises(UnsupportedModelError, match="dense model"):
        TransformersPeer(one.config, one.source, torch.float32)


def test_contexts_are_computed_once() -> None:
    ours = OurEngine(subject().model, cache_format="bf16", cache_tokens=1024)
    ours.decode(Case(128), 2)
    before = ours._engine.stats()
    ours.decode(Case(128), 2)
    after = ours._engine.stats()
    assert after.reused_tokens - before.reused_tokens == 127
    assert after.decode_tokens - before.decode_tokens == 2


def test_a_prompt_to_be_measured_is_never_found_in_the_cache() -> None:
    ours = OurEngine(subject().model, cache_format="bf16", cache_tokens=1024)
    for _ in range(2):
        before = ours._engine.stats().reused_tokens
        ours.prefill(Case(0, 96))
        assert ours._engine.stats().reused_tokens == before


def test_rows_tell_every_case_with_everybody_in_it() -> None:
    one = subject()
    told: list[str] = []
    rows = measure_model(
        one.model,
        [Case(0, 32), Case(64)],
        peers=one.peers(["float32"]),
        repeats=2,
        decode_tokens=2,
        report=lambda _done, _total, what: told.append(what),
    )
    records = as_record(rows)
    assert [record["case"] for record in records] == ["prefill 32", "decode at 64"]
    for record in records:
        assert list(record["tokens_per_second"]) == ["latentkv", "transformers float32"]
        assert all(speed["runs"] == 2 for speed in record["tokens_per_second"].values())
        ours, theirs = (speed["median"] for speed in record["tokens_per_second"].values())
        assert record["ratio_to_fastest_other"] == pytest.approx(ours / theirs, rel=0.01)
    assert told[0] == "prefill 32, latentkv"
