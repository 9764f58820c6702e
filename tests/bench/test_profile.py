"""The profile of a decode step: its parts are the step, and nothing stays timed afterwards."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from latentkv.bench.profile import NATIVE, TIMED, profile_decode, timing
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.load import load_model
from support.tiny_models import FAMILIES, save_model

MLA = next(family for family in FAMILIES if family.name == "deepseek-v2 dense")


def test_parts_are_the_step_and_every_layer_is_counted(tmp_path: Path) -> None:
    save_model(MLA, tmp_path)
    with timing() as clock:
        model = load_model(tmp_path, dtype="float32").model
        parts = {
            part.name: part for part in profile_decode(model, clock, context_tokens=8, tokens=8, cache_format="f32")
        }
    assert sum(part.share for part in parts.values()) == pytest.approx(1, abs=0.2)
    assert list(parts)[-1] == "Python"
    # All layers in one call, and the head; angles; beside them nothing of attention.
    assert parts["weights"].calls == 1 + 1
    assert parts["attention"].calls == 1
    assert parts["rope and cache rows"].calls == 1 + 1
    assert (parts["embedding"].calls, parts["sampling"].calls) == (1, 1)
    assert all(part.milliseconds > 0 for part in parts.values())


def test_op_by_op_every_layer_is_counted(tmp_path: Path) -> None:
    save_model(MLA, tmp_path)
    with timing() as clock:
        model = load_model(tmp_path, dtype="float32").model
        model.execution = replace(model.execution, kernels=replace(model.execution.kernels, blocks=None))
        parts = {
            part.name: part for part in profile_decode(model, clock, context_tokens=8, tokens=8, cache_format="f32")
        }
    layers = MLA.fields["num_hidden_layers"]
    # Query and latent, the query again, the output, gate and up, down; and the head once.
    assert parts["weights"].calls == 5 * layers + 1
    # Absorbing, attending, expanding; rotating and writing, and the angles once.
    assert parts["attention"].calls == 3 * layers
    assert parts["rope and cache rows"].calls == 2 * layers + 1


def test_nothing_is_timed_afterwards_and_the_same_tokens_come(tmp_path: Path) -> None:
    save_model(MLA, tmp_path)
    before = sys.modules[NATIVE], [getattr(owner, name) for owner, name, _ in TIMED]
    params, texts = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True), []
    with timing() as clock:
        engine = Engine(load_model(tmp_path, dtype="float32").model)
        engine.add_request([5, 3], params)
        texts.append([output.token_ids for _ in range(5) for output in engine.step()])
        assert clock.calls["sampling"] == 5
    assert (sys.modules[NATIVE], [getattr(owner, name) for owner, name, _ in TIMED]) == before
    clock.take()
    engine = Engine(load_model(tmp_path, dtype="float32").model)
    engine.add_request([5, 3], params)
    texts.append([output.token_ids for _ in range(5) for output in engine.step()])
    assert texts[0] == texts[1]
    assert not clock.calls
