"""A kernel that raises what nobody expected: the reference computes the call, and the count tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentkv.backends.guard import Guard
from latentkv.backends.kernels import Kernels, choose_kernels
from latentkv.backends.spare_kernels import with_spare
from latentkv.engine.llm import LLM
from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import ShapeError
from latentkv.models.load import load_model
from support.tiny_models import FAMILIES, save_model

OPS = ("rms_norm", "write_rows", "write_latent", "linear_stack", "linear_gated", "linear_groups")
PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PROMPTS = [[3, 5, 8, 13], [1, 2, 3, 4, 5, 6, 7]]


def failing_every(times: int, op):
    """The op, raising in every `times`th call."""
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls % times == 0:
            raise MemoryError("made to fail")
        return op(*args, **kwargs)

    return call


def fragile(kernels: Kernels, times: int) -> Kernels:
    """Op by op, each of them raising now and then."""
    return replace(kernels, blocks=None, **{name: failing_every(times, getattr(kernels, name)) for name in OPS})


@pytest.mark.parametrize("name", ["deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)", "qwen3"])
def test_a_model_says_the_same(name: str, tmp_path: Path) -> None:
    save_model(next(family for family in FAMILIES if family.name == name), tmp_path)
    model = load_model(tmp_path, dtype="float32", guard=Guard()).model
    whole = model.execution
    expected = [one.token_ids for one in LLM(model, cache_format="f32").generate(PROMPTS, PARAMS)]
    broken = fragile(choose_kernels(), times=3)
    model.execution = replace(whole, kernels=broken)
    with pytest.raises(MemoryError):
        LLM(model, cache_format="f32").generate(PROMPTS, PARAMS)
    kernels = with_spare(broken)
    model.execution = replace(whole, kernels=kernels)
    assert [one.token_ids for one in LLM(model, cache_format="f32").generate(PROMPTS, PARAMS)] == expected
    failed = {key.split(":")[0] for key in kernels.fallbacks if key.endswith("MemoryError")}
    assert {"write_latent", "linear_stack", "linear_gated"} <= failed


def test_errors_about_arguments_go_on() -> None:
    def refuse(error: Exception):
        def call(*args, **kwargs):
            raise error

        return call

    for error in (ShapeError("x"), IndexError("a slot outside")):
        kernels = with_spare(replace(choose_kernels(), rms_norm=refuse(error)))
        with pytest.raises(type(error)):
            kernels.rms_norm(torch.ones(1, 4), torch.ones(4), eps=1e-6)
        assert not any(type(error).__name__ in key for key in kernels.fallbacks)
