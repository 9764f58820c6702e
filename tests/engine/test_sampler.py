"""The sampler against probabilities worked out by hand, and against its own probabilities by counting."""

from __future__ import annotations

import math

import pytest
import torch

from latentkv.engine.sampler import Row, make_generator, probabilities, sample
from latentkv.engine.sampling_params import SamplingParams
from support.compare import assert_close

LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()


def row(params: SamplingParams, *, prompt: list[int] = [], output: list[int] = [], banned: list[int] = []) -> Row:  # noqa: B006
    return Row(params, prompt, output, banned, make_generator(params.seed))


def chances(logits: torch.Tensor = LOGITS, **options: object) -> torch.Tensor:
    return probabilities(logits[None], [SamplingParams(**options)])[0]


def pick(logits: torch.Tensor, **row_options: object) -> int:
    """The greedy token of one row of logits."""
    params = row_options.pop("params", SamplingParams(temperature=0))
    return sample(logits[None], [row(params, **row_options)])[0].token_id


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.125, 0.125]),
        ({"temperature": 0.5}, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 3}, [4 / 7, 2 / 7, 1 / 7, 0]),
        ({"top_k": 100}, [0.5, 0.25, 0.125, 0.125]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [4 / 7, 2 / 7, 1 / 7, 0]),
        ({"top_p": 1e-9}, [1, 0, 0, 0]),
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        # top_p counts within what top_k leaves (2/3 and 1/3), not within everything.
        ({"top_k": 2, "top_p": 0.66}, [1, 0, 0, 0]),
        ({"top_p": 0.8, "min_p": 0.3}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1e-30}, [1, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
    ],
)
def test_filters_by_hand(options: dict[str, float], expected: list[float]) -> None:
    assert_close(chances(**options), torch.tensor(expected, dtype=torch.float32), tolerance="float32")


@pytest.mark.parametrize("step", [0.0, 0.25])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (40, 1.0), (700, 0.9), (0, 0.3), (0, 0.97), (0, 0.999), (9999, 0.5)]
)
def test_filters_of_a_large_vocabulary_are_those_of_a_full_sort(top_k: int, top_p: float, step: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(5)) * 3
    logits = (logits / step).round() * step if step else logits  # many equal ones
    order = sorted(range(3000), key=lambda token: (-float(logits[token]), token))[: top_k or None]
    mass = logits.double()[order].softmax(0)
    before = mass.cumsum(0) - mass
    kept = [token for place, token in enumerate(order) if place == 0 or top_p == 1 or before[place] < top_p]
    expected = torch.zeros(3000, dtype=torch.float64)
    expected[kept] = logits.double()[kept].softmax(0)
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p)
    found = probabilities(logits[None], [params])[0]
    assert torch.equal(found > 0, expected > 0)
    assert_close(found, expected, tolerance="float32")


def test_filters_of_one_row_do_not_touch_another() -> None:
    options = [{}, {"top_k": 2}, {"top_p": 0.4}, {"min_p": 0.4}, {"temperature": 0.5}]
    together = probabilities(LOGITS.expand(5, 4), [SamplingParams(**one) for one in options])
    for index, one in enumerate(options):
        assert_close(together[index], chances(**one), tolerance="exact")


def test_greedy_ties_go_to_the_lowest_id() -> None:
    assert pick(torch.tensor([0.0, 3.0, 1.0, 3.0])) == 1
    assert pick(torch.zeros(50_000)) == 0
    assert chances(torch.zeros(50_000), top_k=4).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert chances(torch.tensor([1.0, 2.0, 2.0, 2.0]), top_k=2).tolist() == [0, 0.5, 0.5, 0]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_output() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert pick(torch.tensor([3.0, 2.0]), params=params, prompt=[0]) == 1
    assert pick(torch.tensor([3.0, 2.0]), params=params, output=[0, 0, 0]) == 1
    assert pick(torch.tensor([5.0, 2.0]), params=params, output=[0, 0, 0]) == 0
    assert pick(torch.tensor([-1.0, -1.5]), params=params, prompt=[0], output=[0]) == 1
    assert pick(torch.tensor([-1.0, -2.5]), params=params, prompt=[0], output=[0]) == 0


def test_presence_and_frequency_penalties_look_at_the_output_only() -> None:
    presence = SamplingParams(temperature=0, presence_penalty=1.0)
    frequency = SamplingParams(temperature=0, frequency_penalty=0.5)
    logits = torch.tensor([2.2, 1.0])
    assert pick(logits, params=presence, prompt=[0, 0, 0]) == 0
    assert pick(logits, params=presence, output=[0, 0, 0]) == 0
    assert pick(torch.tensor([1.9, 1.0]), params=presence, output=[0]) == 1
    assert pick(logits, params=frequency, prompt=[0, 0, 0]) == 0
    assert pick(logits, params=frequency, output=[0, 0]) == 0
    assert pick(logits, params=frequency, output=[0, 0, 0]) == 1


def test_banned_tokens_are_not_chosen() -> None:
    assert pick(torch.tensor([3.0, 2.0, 1.0]), banned=[0, 1]) == 2


def test_logits_are_not_written_to() -> None:
    logits = LOGITS[None].clone()
    sample(logits, [row(SamplingParams(repetition_penalty=3.0, top_k=1), prompt=[0], banned=[1])])
    assert_close(logits[0], LOGITS, tolerance="exact")


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 1.7}])
def test_draws_follow_the_probabilities(options: dict[str, float]) -> None:
    """Chi-square over 4000 draws with a fixed seed; 27.9 is its 0.1 % point at 9 degrees of freedom, the most here."""
    logits = torch.linspace(-1.5, 1.0, 10)
    params = SamplingParams(seed=11, **options)
    rows = [row(params)] * 4000
    drawn = torch.tensor([one.token_id for one in sample(logits.expand(4000, -1), rows)])
    counts = drawn.bincount(minlength=10).double()
    expected = chances(logits, **options).double() * 4000
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert ((counts - expected) ** 2 / expected)[possible].sum() < 27.9


def test_a_seed_gives_the_same_tokens_alone_and_in_any_company() -> None:
    generator = torch.Generator().manual_seed(5)
    steps = torch.randn(20, 6, 500, generator=generator)
    params = SamplingParams(seed=3, top_p=0.9, temperature=1.3)
    alone = row(params)
    expected = [sample(logits[2:3], [alone])[0].token_id for logits in steps]
    together = [row(SamplingParams(seed=seed, top_k=seed)) for seed in range(6)]
    together[2] = row(params)
    assert [sample(logits, together)[2].token_id for logits in steps] == expected
    assert len(set(expected)) > 1


def test_without_a_seed_requests_differ() -> None:
    logits = torch.zeros(2, 1_000_000)
    first, second = sample(logits, [row(SamplingParams()), row(SamplingParams())])
    assert first.token_id != second.token_id


def test_logprobs_are_those_of_the_models_own_logits() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=100.0, top_k=1, logprobs=2)
    (sampled,) = sample(LOGITS[None] + 5, [row(params, prompt=[0])])
    assert sampled.token_id == 1
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(math.log(0.25), abs=1e-5)
    assert [token for token, _ in sampled.logprob.top] == [0, 1]
    assert sampled.logprob.top[0][1] == pytest.approx(math.log(0.5), abs=1e-5)


def test_logprobs_of_the_chosen_token_only_of_all_or_not_at_all() -> None:
    for alternatives, expected in ((0, 0), (3, 3), (99, 4)):
        (sampled,) = sample(LOGITS[None], [row(SamplingParams(temperature=0, logprobs=alternatives))])
        assert sampled.logprob is not None
        assert len(sampled.logprob.top) == expected
    assert sample(LOGITS[None], [row(SamplingParams(temperature=0))])[0].logprob is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_an_error_not_a_token(bad: float, temperature: int) -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        sample(torch.tensor([[0.0, bad, 0.0]]), [row(SamplingParams(temperature=temperature))])


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((2000, 5), -torch.inf)
    logits[:, 3] = 0
    rows = [row(SamplingParams(seed=1))] * 2000
    assert {one.token_id for one in sample(logits, rows)} == {3}


def test_nothing_to_sample() -> None:
    assert sample(torch.empty(0, 4), []) == []
