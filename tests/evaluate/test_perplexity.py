"""Perplexity against the definition, computed by another implementation of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentkv.errors import OptionError
from latentkv.evaluate import prediction
from latentkv.evaluate.perplexity import perplexity
from latentkv.models.load import load_model
from support.tiny_models import FAMILIES, VOCAB, save_model


@pytest.mark.parametrize("tokens", [2, 20, 21, 50])
def test_windows_and_chunks_score_every_token_but_each_windows_first(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "CHUNK_TOKENS", 7)
    theirs = save_model(FAMILIES[0], tmp_path / "model")
    model = load_model(tmp_path / "model", dtype="float32").model
    ids = torch.randint(0, VOCAB, (tokens,), generator=torch.Generator().manual_seed(tokens))
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for window in ids.split(20):
            chances = theirs(window[None]).logits[0].double().log_softmax(-1)
            losses += [-chances[place, token] for place, token in enumerate(window[1:])]
    told: list[tuple[int, int]] = []
    found = perplexity(model, ids.tolist(), window_tokens=20, progress=lambda *step: told.append(step))
    assert found == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    # A rest of one token has nothing to predict and is left out.
    counted = tokens - (tokens % 20 == 1)
    assert told[-1] == (counted, counted)


def test_one_token_predicts_nothing(tmp_path: Path) -> None:
    save_model(FAMILIES[0], tmp_path / "model")
    with pytest.raises(OptionError, match="at least two tokens"):
        perplexity(load_model(tmp_path / "model").model, [5])
