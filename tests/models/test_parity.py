"""Logits against transformers' own models, over every way a sequence can reach the cache.

The largest error of each family is printed in a table at the end of the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import choose_kernels
from latentkv.cache.layout import layout_for
from latentkv.models.config import ModelConfig
from latentkv.models.exact_mla import ExactMLASource, exact_mla_config
from latentkv.models.model import Model
from latentkv.models.weights import SafetensorsSource
from support.compare import assert_close
from support.paged import PAGE_TOKENS, Sequences
from support.parity import PARITY
from support.tiny_models import FAMILIES, GQA_FAMILIES, VOCAB, Family, save_model

POSITIONS = 64


@dataclass(frozen=True)
class Case:
    """One family's two models, a text, and transformers' logits for it: [POSITIONS, vocab]."""

    folder: Path
    theirs: torch.nn.Module
    ours: Model
    tokens: Tensor
    expected: Tensor


def load(folder: Path, *, as_mla: bool = False) -> Model:
    config = json.loads((folder / "config.json").read_text())
    source = SafetensorsSource(folder)
    if as_mla:
        view = ExactMLASource(source, config)
        return Model.read(view, ModelConfig.from_dict(exact_mla_config(config)), dtype=torch.float32)
    return Model.read(source, ModelConfig.from_dict(config), dtype=torch.float32)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {}


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: Family = request.param
    if family.name not in cases:
        folder = tmp_path_factory.mktemp("model")
        theirs = save_model(family, folder)
        tokens = torch.randint(0, VOCAB, (POSITIONS,), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = theirs(tokens[None]).logits[0]
        cases[family.name] = Case(folder, theirs, load(folder), tokens, expected)
    return cases[family.name]


every_family = pytest.mark.parametrize("case", FAMILIES, ids=lambda family: family.name, indirect=True)
every_kernels = pytest.mark.parametrize("kernels", ["portable", *(["native"] if available_isas() else [])])
gqa_families = pytest.mark.parametrize("case", GQA_FAMILIES, ids=lambda family: family.name, indirect=True)


@every_family
def test_parity_of_prefill(case: Case, request: pytest.FixtureRequest) -> None:
    [logits] = Sequences(case.ours).run([(0, case.tokens)])
    error = ((logits - case.expected).abs().max() / case.expected.abs().max()).item()
    request.config.stash.setdefault(PARITY, {})[request.node.callspec.id] = error
    assert_close(logits, case.expected, tolerance="logits")


@every_family
def test_parity_of_token_by_token_decode(case: Case) -> None:
    sequences = Sequences(case.ours)
    logits = [sequences.run([(0, token)])[0] for token in case.tokens.split(1)]
    assert_close(torch.cat(logits), case.expected, tolerance="logits")


@every_family
def test_parity_of_chunks_that_end_beside_page_boundaries(case: Case) -> None:
    sequences = Sequences(case.ours)
    lengths = [1, PAGE_TOKENS - 2, 2, PAGE_TOKENS, PAGE_TOKENS - 1, 7, 9]
    lengths.append(POSITIONS - sum(lengths))
    logits = [sequences.run([(0, chunk)])[0] for chunk in case.tokens.split(lengths)]
    assert_close(torch.cat(logits), case.expected, tolerance="logits")


@every_family
def test_parity_after_a_prefix_hit(case: Case) -> None:
    sequences = Sequences(case.ours)
    sequences.run([(0, case.tokens[: 2 * PAGE_TOKENS + 5])])
    sequences.pages[1] = sequences.pages[0][:2]
    sequences.computed[1] = 2 * PAGE_TOKENS
    [logits] = sequences.run([(1, case.tokens[2 * PAGE_TOKENS :])])
    assert_close(logits, case.expected[2 * PAGE_TOKENS :], tolerance="logits")


@every_family
def test_parity_in_a_batch_of_unequal_lengths_and_kinds_of_work(case: Case) -> None:
    sequences = Sequences(case.ours)
    others = torch.randint(0, VOCAB, (3, POSITIONS), generator=torch.Generator().manual_seed(2))
    sequences.run([(0, case.tokens[:20]), (1, others[0, :1]), (2, others[1, :33])])
    mixed = [(1, others[0, 1:2]), (0, case.tokens[20:57]), (3, others[2, :5]), (2, others[1, 33:34])]
    logits = sequences.run(mixed)[1]
    assert_close(logits, case.expected[20:57], tolerance="logits")


@every_family
@pytest.mark.parametrize("form", ["latent", "head"])
def test_parity_of_both_forms(case: Case, form: str) -> None:
    ours = load(case.folder)
    ours.execution = replace(ours.execution, form=form)
    sequences = Sequences(ours, page_tokens=1, num_pages=POSITIONS)
    logits = [sequences.run([(0, chunk)])[0] for chunk in case.tokens.split([50, 1, 13])]
    assert_close(torch.cat(logits), case.expected, tolerance="logits")


@every_family
@every_kernels
def test_parity_with_each_implementation_of_the_kernels(case: Case, kernels: str) -> None:
    ours = load(case.folder)
    ours.execution = replace(ours.execution, kernels=choose_kernels(kernels))
    sequences = Sequences(ours)
    logits = [sequences.run([(0, chunk)])[0] for chunk in case.tokens.split([40, 1, 1, 22])]
    assert_close(torch.cat(logits), case.expected, tolerance="logits")
    assert not ours.execution.kernels.fallbacks


@gqa_families
@every_kernels
def test_exact_conversion_has_the_logits_and_the_bytes_of_the_original(case: Case, kernels: str) -> None:
    converted = load(case.folder, as_mla=True)
    converted.execution = replace(converted.execution, kernels=choose_kernels(kernels))
    sequences = Sequences(converted)
    logits = [sequences.run([(0, chunk)])[0] for chunk in case.tokens.split([40, 1, 1, 22])]
    assert_close(torch.cat(logits), case.expected, tolerance="logits")
    original = layout_for(case.ours.geometry, "bf16")
    assert converted.geometry.kind == "mla"
    assert layout_for(converted.geometry, "bf16").bytes_per_token == original.bytes_per_token
