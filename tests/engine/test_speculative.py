"""Guessing changes how many tokens a step gives and never which ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import EOS, VOCAB_SIZE, CacheReadingModel, greedy, make_engine, prompt_of, run

from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.speculative import NgramLookup, Speculation, parse_speculation
from latentkv.errors import OptionError
from latentkv.models.load import load_model
from support.tiny_models import FAMILIES, VOCAB, save_model

FOUR = Speculation(tokens=4)


def test_what_followed_the_same_ending_last_is_guessed() -> None:
    lookup = NgramLookup(FOUR)
    assert lookup.propose([1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3], 4) == (9, 8, 7, 6)
    assert lookup.propose([1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3], 2) == (9, 8)
    lookup = NgramLookup(FOUR)
    assert lookup.propose([2, 3, 4, 7, 2, 3, 5, 8, 2, 3], 4) == (5, 8, 2, 3), "the last place counts"
    assert NgramLookup(FOUR).propose([1, 2, 3, 4, 5, 3], 4) == (), "one token alone says too little"
    assert NgramLookup(FOUR).propose([7], 4) == ()


def test_a_longer_ending_is_trusted_more() -> None:
    assert NgramLookup(FOUR).propose([1, 2, 3, 4, 5, 0, 3, 4, 6, 1, 2, 3, 4], 1) == (5,)


def test_guesses_go_round_in_a_text_that_repeats_itself() -> None:
    assert NgramLookup(FOUR).propose([5, 6, 5, 6, 5], 4) == (6, 5, 6, 5)
    assert NgramLookup(FOUR).propose([4, 4, 4], 4) == (4, 4, 4, 4)


def test_bad_guesses_are_followed_by_fewer_and_then_by_none_for_a_while() -> None:
    lookup = NgramLookup(FOUR)
    text = [1, 2] * 20
    assert len(lookup.propose(text, 4)) == 4
    lookup.learn(proposed=4, accepted=0, length=40)
    assert len(lookup.propose(text, 4)) == 2
    lookup.learn(proposed=2, accepted=0, length=41)
    assert lookup.propose([1, 2] * 20, 4) == ()
    assert len(lookup.propose([1, 2] * 25, 4)) == 1
    lookup.learn(proposed=1, accepted=1, length=52)
    assert len(lookup.propose([1, 2] * 26, 4)) == 2
    lookup.learn(proposed=2, accepted=2, length=55)
    assert len(lookup.propose([1, 2] * 28, 4)) == 4


def test_options_as_text() -> None:
    assert parse_speculation(None) is None
    assert parse_speculation("off") is None
    assert parse_speculation("ngram") == Speculation()
    assert parse_speculation("ngram:7") == Speculation(tokens=7)
    for wrong in ("ngram:", "ngram:0", "ngram:-1", "ngram:x", "eagle", ""):
        with pytest.raises(OptionError):
            parse_speculation(wrong)


def both(params: list[SamplingParams], *, memory: int = 2, **options: object) -> tuple[dict, dict, Engine]:
    """The same requests without and with guessing: outputs by request, and the engine that guessed."""
    results = []
    for speculation in (None, FOUR):
        engine = make_engine(CacheReadingModel(memory=memory), speculation=speculation, **options)
        for index, one in enumerate(params):
            engine.add_request(prompt_of(5 + 3 * index, index), one, request_id=str(index))
        results.append(run(engine))
        assert engine.stats().held_pages == 0
    assert engine.stats().proposed_tokens >= engine.stats().accepted_tokens
    return results[0], results[1], engine


@pytest.mark.parametrize("page_tokens", [1, 4, 64])
@pytest.mark.parametrize("max_batch_tokens", [3, 8, 2048])
@pytest.mark.parametrize("memory", [1, 2, 0])
def test_greedy_tokens_are_the_same(page_tokens: int, max_batch_tokens: int, memory: int) -> None:
    params = [greedy(max_tokens=count, ignore_eos=True) for count in (60, 31, 2)]
    options = {"page_tokens": page_tokens, "max_batch_tokens": max_batch_tokens}
    without, guessed, engine = both(params, memory=memory, **options)
    assert guessed == without
    if memory and max_batch_tokens > 3:
        assert engine.stats().accepted_tokens > 30
        assert engine.stats().steps < 60
        assert engine.stats().decode_tokens == 60 + 31 + 2 - 3


def test_drawn_tokens_are_the_same_too() -> None:
    common = {"max_tokens": 50, "ignore_eos": True, "logprobs": 2}
    params = [
        SamplingParams(seed=1, temperature=0.3, **common),
        SamplingParams(seed=2, temperature=0.5, top_k=3, repetition_penalty=1.1, **common),
        SamplingParams(seed=3, temperature=0.4, top_p=0.9, frequency_penalty=0.05, **common),
    ]
    without, guessed, engine = both(params)
    assert guessed == without
    assert engine.stats().accepted_tokens > 0


def test_ends_fall_where_they_did() -> None:
    params = [greedy(max_tokens=60), greedy(max_tokens=60, min_tokens=40), greedy(max_tokens=7)]
    for salt_memory in (1, 2, 3):
        without, guessed, _ = both(params, memory=salt_memory)
        assert guessed == without


def test_a_stop_string_within_accepted_guesses_ends_the_text_there() -> None:
    plain = make_engine(CacheReadingModel(memory=1))
    plain.add_request(prompt_of(5), greedy(max_tokens=60, ignore_eos=True), request_id="x")
    tokens = run(plain)["x"]
    stop = bytes(tokens[40:43]).decode()
    completions = []
    for speculation in (None, FOUR):
        engine = make_engine(CacheReadingModel(memory=1), speculation=speculation)
        engine.add_request(prompt_of(5), greedy(max_tokens=60, ignore_eos=True, stop=stop), request_id="x")
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        engine.check()
        assert outputs[-1].finish_reason == "stop"
        completions.append(("".join(o.text for o in outputs), [t for o in outputs for t in o.token_ids]))
    assert completions[0] == completions[1]


def test_logprobs_are_one_for_each_token() -> None:
    engine = make_engine(CacheReadingModel(memory=1), speculation=FOUR)
    engine.add_request(prompt_of(5), greedy(max_tokens=40, ignore_eos=True, logprobs=1))
    most = 0
    while engine.has_work:
        for output in engine.step():
            assert [one.token_id for one in output.logprobs] == list(output.token_ids)
            most = max(most, len(output.token_ids))
    assert most == 5


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_in_a_tiny_pool_guessing_preempts_nobody_and_gives_its_pages_back(prefix_cache: bool) -> None:
    params = [greedy(max_tokens=25, ignore_eos=True)] * 5
    options = {"cache_tokens": 60, "page_tokens": 2, "max_batch_tokens": 16, "prefix_cache": prefix_cache}
    without, guessed, engine = both(params, memory=1, **options)
    assert guessed == without
    assert engine.stats().accepted_tokens > 0


def test_a_constraint_sees_each_token_once() -> None:
    class Alternating:
        """Lets through a, b, a, b, …"""

        def __init__(self) -> None:
            self.seen: list[int] = []

        def allowed(self) -> torch.Tensor:
            mask = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
            mask[ord("ab"[len(self.seen) % 2])] = True
            return mask

        def advance(self, token_id: int) -> None:
            self.seen.append(token_id)

    constraint = Alternating()
    engine = make_engine(speculation=FOUR)
    engine.add_request(prompt_of(5), greedy(max_tokens=20), constraint=constraint, request_id="x")
    assert run(engine)["x"] == constraint.seen == list(b"ab" * 10)
    assert engine.stats().steps < 12


def test_with_many_sequences_nothing_is_guessed() -> None:
    engine = make_engine(CacheReadingModel(memory=1), speculation=Speculation(tokens=4, max_sequences=2))
    for index in range(3):
        engine.add_request(prompt_of(5, index), greedy(max_tokens=20, ignore_eos=True))
    for _ in range(15):
        engine.step()
    assert engine.stats().proposed_tokens == 0


@pytest.mark.parametrize("name", ["deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)", "qwen3"])
def test_a_real_model_says_the_same(name: str, tmp_path: Path) -> None:
    save_model(next(family for family in FAMILIES if family.name == name), tmp_path)
    model = load_model(tmp_path, dtype="float32").model
    pattern = torch.randint(0, VOCAB, (6,), generator=torch.Generator().manual_seed(2)).tolist()
    outputs = []
    for speculation in (None, Speculation(tokens=6)):
        engine = Engine(model, cache_format="f32", page_tokens=8, speculation=speculation)
        for start in range(3):
            params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)
            engine.add_request(pattern[start:] * 4, params, request_id=str(start))
        outputs.append(run(engine))
    assert outputs[0] == outputs[1]
    assert engine.stats().proposed_tokens > 0
    assert EOS not in outputs[0]
