"""A model whose backends fail while it generates: no request notices, and the guard tells what happened."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch

from latentkv.backends.breaker import BreakerPolicy
from latentkv.backends.dumps import DumpFolder, read_dump
from latentkv.backends.guard import Guard
from latentkv.backends.registry import find_backend
from latentkv.backends.shadow import Shadow
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.load import load_model
from latentkv.models.model import Model
from support.failing_backend import FailingBackend
from support.tiny_models import FAMILIES, VOCAB, save_model

CHOSEN = ("deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)", "qwen3")
NEVER = BreakerPolicy(failures=1000)
OUTPUT_TOKENS = 24


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family.name in CHOSEN], ids=lambda f: f.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save_model(request.param, folder)
    return load_model(folder, dtype="float32").model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in (5, 17, 33)]


@pytest.fixture(scope="module")
def undisturbed(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    return generate(model, None, prompts)


def generate(model: Model, guard: Guard | None, prompts: list[list[int]], *, between: object = None) -> list[list[int]]:
    model.execution = replace(model.execution, guard=guard)
    engine = Engine(model, cache_format="f32", page_tokens=16, max_batch_tokens=20)
    names = [engine.add_request(p, SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS)) for p in prompts]
    tokens: dict[str, list[int]] = {name: [] for name in names}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
        if between is not None:
            between()
    engine.check()
    model.execution = replace(model.execution, guard=None)
    return [tokens[name] for name in names]


@pytest.mark.parametrize(("mode", "reason"), [("raise", "RuntimeError"), ("nan", "non-finite"), ("inf", "non-finite")])
def test_a_failing_backend_is_replaced_in_the_same_step(
    model: Model, prompts: list[list[int]], undisturbed: list[list[int]], mode: str, reason: str
) -> None:
    failing = FailingBackend(mode, every=3, at_call=1)
    guard = Guard(["failing", "portable"], plugins=[failing], policy=NEVER)
    assert generate(model, guard, prompts) == undisturbed
    state = guard.state()
    assert failing.failures >= 8
    assert state.failures == {("failing", reason): failing.failures}
    assert state.replaced == {("failing", "portable"): failing.failures}
    assert state.breakers == {"failing": "closed", "portable": "closed"}
    assert {event.replaced_by for event in guard.events} == {"portable"}


def test_a_breaker_opens_and_one_good_step_closes_it(
    model: Model, prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    now = [0.0]
    failing = FailingBackend("raise", every=1)
    policy = BreakerPolicy(failures=3, window_s=60, cooldown_s=30)
    guard = Guard(["failing", "portable"], plugins=[failing], policy=policy, clock=lambda: now[0])
    assert generate(model, guard, prompts) == undisturbed
    assert failing.failures == 3
    assert guard.state().breakers["failing"] == "open"
    assert guard.state().active == "portable"
    now[0] = 30.0
    assert guard.state().breakers["failing"] == "half-open"
    generate(model, guard, prompts[:1])
    assert failing.failures == 4, "one trial, then left alone again"
    now[0] = 60.0
    failing.every = 0
    assert generate(model, guard, prompts) == undisturbed
    assert guard.state().breakers["failing"] == "closed"
    assert guard.state().active == "failing"


def test_switching_under_traffic_from_another_thread(
    model: Model, prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    guard = Guard(["native", "portable"], policy=NEVER)
    done = threading.Event()

    def switch() -> None:
        # With a pause: without, this thread would have the interpreter for 5 ms between any two native calls.
        for name in cycle(("portable", "auto")):
            guard.switch(name)
            if done.wait(0.002):
                return

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        assert generate(model, guard, prompts) == undisturbed
    finally:
        done.set()
        thread.join()
    assert guard.state().failures == {}
    assert sum(guard.state().paths.values()) > OUTPUT_TOKENS


def test_a_shadow_agrees_with_a_right_backend(model: Model, prompts: list[list[int]]) -> None:
    shadow = Shadow(find_backend("portable"), share=1.0)
    generate(model, Guard(["native", "portable"], shadow=shadow), prompts)
    state = shadow.state()
    assert state.steps > OUTPUT_TOKENS
    assert state.calls == 3 * state.steps
    assert (state.mismatches, state.errors) == (0, 0)
    assert sum(state.out_error.counts) == state.calls


def test_a_shadow_finds_a_wrong_backend_and_its_dump_runs_again(
    model: Model, prompts: list[list[int]], tmp_path: Path
) -> None:
    wrong = FailingBackend("wrong", every=5, at_call=2)
    shadow = Shadow(find_backend("portable"), share=1.0, dumps=DumpFolder(tmp_path, max_files=3))
    generate(model, Guard(["failing"], plugins=[wrong], shadow=shadow), prompts)
    assert shadow.state().mismatches == wrong.failures
    assert shadow.state().dumped == 3
    assert len(list(tmp_path.iterdir())) == 3
    dump = read_dump(next(tmp_path.iterdir()))
    assert [name for name, _ in dump.results] == ["failing", "portable"]
    again = dump.call.run(find_backend("portable"))
    assert torch.equal(again.out, dump.results[1][1].out)
    assert torch.equal(again.lse, dump.results[1][1].lse)
