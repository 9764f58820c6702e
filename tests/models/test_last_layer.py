"""The last layer computes the rows that logits are wanted of, and what the cache keeps of all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentkv.backends.guard import Guard
from latentkv.backends.kernels import portable_kernels
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import layout_for
from latentkv.models.load import load_model
from latentkv.models.model import Model
from support.compare import assert_close
from support.hostile import poison
from support.tiny_models import FAMILIES, VOCAB, Family, save_model

LENGTHS = [[(5, 5), (17, 17), (1, 1)], [(1, 6), (9, 26), (4, 5)]]
# The last token of each, of a sequence none and of another two, none at all, and two that are not the last ones.
ROWS = [[0, 9, 13], [8, 9, 13], [], [0, 3]]


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    return Batch.build(
        query_lens=[query for query, _ in lengths],
        context_lens=[context for _, context in lengths],
        pages=[[10 * i + 9 - page for page in range(4)] for i in range(len(lengths))],
        page_tokens=8,
    )


def run(model: Model, rows: list[int] | None) -> tuple[Tensor, Tensor]:
    """Logits of the second step, of these rows or of all, and the cache it left."""
    cache = LatentCache(layout_for(model.geometry, "f32", page_tokens=8), 30)
    poison(cache.storage)
    for lengths in LENGTHS:
        batch = batch_of(lengths)
        tokens = torch.arange(batch.num_tokens) * 31 % VOCAB
        wanted = torch.arange(batch.num_tokens) if rows is None else torch.tensor(rows, dtype=torch.int64)
        logits = model.forward(tokens, batch, cache, logit_rows=wanted)
    return logits, cache.storage.view(torch.uint8)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_are_those_of_a_whole_step(family: Family, tmp_path: Path) -> None:
    save_model(family, tmp_path)
    attention = "mla" if "kv_lora_rank" in family.fields else "gqa"
    model = load_model(tmp_path, attention=attention, dtype="float32").model
    model.execution = replace(model.execution, kernels=portable_kernels(), backend="portable")
    logits, cache = run(model, None)
    for rows in ROWS:
        for guard in (None, Guard(["portable"])):
            model.execution = replace(model.execution, guard=guard)
            some, left = run(model, rows)
            assert_close(some, logits[rows], tolerance="logits")
            assert torch.equal(left, cache)


def test_only_the_last_tokens_of_sequences_make_a_batch() -> None:
    batch = batch_of(LENGTHS[1])
    rest = batch.last_tokens(torch.tensor([8, 9, 13]))
    assert rest is not None
    assert rest.lengths == ((0, 6), (2, 26), (1, 5))
    assert rest.positions.tolist() == [24, 25, 4]
    assert rest.slots.tolist() == [batch.slots[row] for row in (8, 9, 13)]
    for rows in ([0, 3], [9, 0], [13, 13], [8]):
        assert batch.last_tokens(torch.tensor(rows)) is None
