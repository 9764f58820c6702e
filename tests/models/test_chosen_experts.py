"""A decode step reads the experts that its token chose, and no others: they may not be in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from latentkv.backends.kernels import native_kernels
from latentkv.models.load import load_model
from latentkv.ops.linear import Projection
from support.paged import Sequences
from support.tiny_models import FAMILIES, save_model

MOE = next(family for family in FAMILIES if family.name == "deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)")
TOKEN = [(0, torch.tensor([5]))]


def is_used(projection: Projection) -> bool:
    """Kernels keep a handle with each weight that they were given."""
    return bool(projection.handles)


def test_a_token_uses_as_many_experts_as_it_chooses_and_is_the_same_without_the_others(tmp_path: Path) -> None:
    assert native_kernels().name.startswith("native")
    save_model(MOE, tmp_path)
    first, second = (load_model(tmp_path, dtype="float32", weights="stored").model for _ in range(2))
    # Blocks are made of all experts, read or not; op by op a handle tells which were.
    first.execution = replace(first.execution, kernels=replace(native_kernels(), blocks=None))
    logits = Sequences(first).run(TOKEN)[0]
    layers = [index for index, layer in enumerate(first.layers) if index in first.config.moe_layers]
    assert layers
    for index in layers:
        experts, others = (model.layers[index].feed_forward.experts for model in (first, second))
        used = [number for number, expert in enumerate(experts) if is_used(expert.up)]
        assert len(used) == MOE.fields["num_experts_per_tok"]
        for number, expert in enumerate(experts):
            parts = (expert.gate, expert.up, expert.down)
            assert {is_used(part) for part in parts} == {number in used}
            if number not in used:
                for part in (others[number].gate, others[number].up, others[number].down):
                    part.weight.fill_(torch.nan)
    assert torch.equal(Sequences(second).run(TOKEN)[0], logits)
