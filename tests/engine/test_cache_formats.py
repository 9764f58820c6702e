"""Generation from caches of codes, end to end: every format on random models, and the real model says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, layout_for
from latentkv.engine.llm import LLM
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.load import LoadedModel, load_model
from latentkv.models.model import Model
from support.compare import assert_close
from support.hostile import poison
from support.tiny_models import FAMILIES, save_model

CHOSEN = ("deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)", "minicpm3", "qwen3")
CODED = ("fp8", "int8", "int6", "int4")


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family.name in CHOSEN], ids=lambda f: f.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save_model(request.param, folder)
    return load_model(folder, dtype="float32").model


def logits(model: Model, format: str, *, rotated: bool, chunks: tuple[int, ...] = (7, 1, 12)) -> torch.Tensor:
    layout = layout_for(model.geometry, replace(FORMATS[format], rotated=rotated), page_tokens=8)
    cache = LatentCache(layout, 4)
    poison(cache.storage)
    ids = torch.arange(sum(chunks)) * 7 % model.vocab_size
    parts, done = [], 0
    for count in chunks:
        batch = Batch.build(query_lens=[count], context_lens=[done + count], pages=[[2, 0, 3, 1]], page_tokens=8)
        parts.append(model.forward(ids[done : done + count], batch, cache, logit_rows=torch.arange(count)))
        done += count
    return torch.cat(parts)


def test_a_rotated_cache_gives_the_same_logits(model: Model) -> None:
    assert_close(logits(model, "f32", rotated=True), logits(model, "f32", rotated=False), tolerance="logits")


@pytest.mark.parametrize("format", CODED)
def test_rotated_rows_need_rotated_projections(model: Model, format: str) -> None:
    """Were one of writer, W_UK and W_UV not rotated, logits would be unrelated: an error of sqrt(2) of their size.

    Random models sharpen what codes lose, and random routers flip: how large the loss is, is measured on a real one.
    """
    exact = logits(model, "f32", rotated=False).double()
    for rotated in (False, True):
        error = (logits(model, format, rotated=rotated).double() - exact).norm() / exact.norm()
        assert error < 0.6


@pytest.mark.parametrize("format", CODED)
def test_how_a_prompt_is_cut_changes_nothing(model: Model, format: str) -> None:
    rotated = FORMATS[format].rotated
    whole = logits(model, format, rotated=rotated, chunks=(20,))
    # Both read the same codes, up to those that float32's rounding moves to the next step.
    error = (logits(model, format, rotated=rotated).double() - whole.double()).norm() / whole.double().norm()
    assert error < 0.01


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("format", CODED)
def test_many_requests_with_shared_prefixes_and_few_pages(
    format: str, attention: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    save_model(next(family for family in FAMILIES if family.name == "qwen3"), folder)
    options = {"dtype": "float32", "attention": attention, "cache_format": format, "page_tokens": 8}
    llm = LLM(folder, **options, cache_tokens=96)
    prompts = [[*range(1, 17), 20 + i] for i in range(5)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    crowded = [completion.token_ids for completion in llm.generate(prompts, params)]
    assert [len(tokens) for tokens in crowded] == [20] * 5
    assert llm.stats().bytes_per_token == layout_for(llm.engine.model.geometry, format).bytes_per_token
    llm.engine.check()


@pytest.fixture(scope="module")
def real() -> LoadedModel:
    return load_model(dtype="float32")


def say(real: LoadedModel, prompt: str, *, cache_format: str, max_tokens: int) -> str:
    llm = LLM(real.model, tokenizer=real.tokenizer, cache_format=cache_format)
    [answer] = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens))
    return answer.text


@pytest.mark.model
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_the_real_model_says_the_same(format: str, real: LoadedModel) -> None:
    # A continuation without a near tie: rounding alone would decide one.
    prompt = "The days of the week are Monday, Tuesday,"
    expected = say(real, prompt, cache_format="bf16", max_tokens=12)
    assert say(real, prompt, cache_format=format, max_tokens=12) == expected


@pytest.mark.model
@pytest.mark.parametrize("format", ["int6", "int4"])
def test_the_real_model_makes_sense_in_few_bits(format: str, real: LoadedModel) -> None:
    assert "Paris" in say(real, "The capital of France is", cache_format=format, max_tokens=6)
