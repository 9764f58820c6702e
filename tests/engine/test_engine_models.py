"""The engine over real layers: its greedy tokens are transformers' own, however the work was cut and mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentkv.backends.base import Plan, Request
from latentkv.cache.batch import Batch
from latentkv.engine.engine import Engine
from latentkv.engine.llm import LLM
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models import attention
from latentkv.models.load import load_model
from latentkv.models.model import Model
from support.tiny_models import FAMILIES, VOCAB, Family, save_model

OUTPUT_TOKENS = 24
PROMPT_LENGTHS = (5, 17, 33, 64, 1)
CHOSEN = ("deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)", "minicpm3", "qwen3")


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family.name in CHOSEN], ids=lambda f: f.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    family: Family = request.param
    folder = tmp_path_factory.mktemp("model")
    theirs = save_model(family, folder)
    return load_model(folder, dtype="float32").model, theirs


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    made = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    # Two prompts begin the same: the second finds pages of the first.
    return [*made, made[3][:48] + made[0]]


@pytest.fixture(scope="module")
def expected(pair: tuple[Model, Any], prompts: list[list[int]]) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": OUTPUT_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        made = [pair[1].generate(torch.tensor([prompt]), **options) for prompt in prompts]
    return [out[0, len(prompt) :].tolist() for out, prompt in zip(made, prompts, strict=True)]


def generate(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    names = [engine.add_request(prompt, params) for prompt in prompts]
    tokens: dict[str, list[int]] = {name: [] for name in names}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
        engine.check()
    return [tokens[name] for name in names]


def test_tokens_of_each_request_alone(
    pair: tuple[Model, Any], prompts: list[list[int]], expected: list[list[int]]
) -> None:
    alone = [generate(Engine(pair[0], cache_format="f32"), [prompt])[0] for prompt in prompts]
    assert alone == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_tokens": 16, "max_batch_tokens": 7},
        {"page_tokens": 1, "max_batch_tokens": 50, "max_batch_sequences": 2},
        {"page_tokens": 8, "cache_tokens": 104, "max_batch_tokens": 31},
    ],
    ids=["whole prompts", "small chunks", "two at a time", "pages run out"],
)
def test_tokens_in_a_batch_mix(
    pair: tuple[Model, Any], prompts: list[list[int]], expected: list[list[int]], options: dict[str, int]
) -> None:
    engine = Engine(pair[0], cache_format="f32", **options)
    assert generate(engine, prompts) == expected
    if "cache_tokens" in options:
        assert engine.stats().preemptions > 0
    # Once more, now over the pages that the first round left behind.
    assert generate(engine, prompts) == expected
    if "page_tokens" in options:
        assert engine.stats().reused_tokens > 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_reaches_attention(deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    real = attention.plan_attend

    def plan_attend(request: Request, batch: Batch, *, backend: str) -> Plan:
        seen.append(request)
        return real(request, batch, backend=backend)

    monkeypatch.setattr(attention, "plan_attend", plan_attend)
    save_model(next(family for family in FAMILIES if family.name in CHOSEN), tmp_path)
    llm = LLM(tmp_path, dtype="float32", deterministic=deterministic)
    llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=2))
    assert {request.deterministic for request in seen} == {deterministic}
