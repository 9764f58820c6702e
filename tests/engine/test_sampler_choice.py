"""What a request may take: biases move logits, a constraint rules tokens out and is told each choice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentkv.engine.sampler import Row, make_generator, sample
from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import OptionError

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0]])


class Only:
    """A constraint that allows some tokens and remembers what was chosen."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.chosen: list[int] = []

    def allowed(self) -> Tensor:
        mask = torch.zeros(4, dtype=torch.bool)
        mask[list(self.tokens)] = True
        return mask

    def advance(self, token_id: int) -> None:
        self.chosen.append(token_id)


def row(constraint: Only | None = None, **options: object) -> Row:
    return Row(SamplingParams(**options), (), (), (), make_generator(1), constraint)


def test_a_bias_is_added_to_the_logits_and_not_to_the_logprobs() -> None:
    (biased,) = sample(LOGITS, [row(temperature=0, logit_bias={0: 3.5}, logprobs=1)])
    assert biased.token_id == 0
    assert biased.logprob is not None
    assert biased.logprob.top[0][0] == 3
    assert LOGITS.tolist() == [[0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_a_constraint_rules_out_the_others(temperature: float) -> None:
    constraint = Only(1, 2)
    asked = row(constraint, temperature=temperature, logit_bias={3: 100})
    chosen = [sample(LOGITS, [asked])[0].token_id for _ in range(20)]
    assert set(chosen) <= {1, 2}
    assert constraint.chosen == chosen


def test_a_constraint_is_its_rows_own() -> None:
    both = sample(LOGITS.expand(2, 4), [row(Only(0), temperature=0), row(temperature=0)])
    assert [one.token_id for one in both] == [0, 3]


@pytest.mark.parametrize("bias", [{0: 101}, {-1: 1}, {0: "1"}, {"0": 1}, [1], {0: float("nan")}])
def test_biases_outside_their_range(bias: object) -> None:
    with pytest.raises(OptionError, match="logit_bias"):
        SamplingParams(logit_bias=bias)
