"""Whole runs of the engine over a model that reads its cache: whatever happens to pages, the tokens are the same."""

from __future__ import annotations

import pytest
from fakes import (
    EOS,
    VOCAB_SIZE,
    ByteTokenizer,
    CacheReadingModel,
    greedy,
    greedy_tokens,
    make_engine,
    prompt_of,
    run,
    talkative_prompt,
)

from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import CapacityError, OptionError, TokenizerError

LENGTHS = [1, 3, 4, 5, 8, 17, 31, 2]


@pytest.mark.parametrize("page_tokens", [1, 4, 64])
@pytest.mark.parametrize("max_batch_tokens", [1, 7, 8, 2048])
@pytest.mark.parametrize("cache_format", ["f32", "bf16", "f16"])
def test_tokens_do_not_depend_on_batch_pages_or_chunks(
    page_tokens: int, max_batch_tokens: int, cache_format: str
) -> None:
    engine = make_engine(page_tokens=page_tokens, max_batch_tokens=max_batch_tokens, cache_format=cache_format)
    for index, length in enumerate(LENGTHS):
        engine.add_request(prompt_of(length, index), greedy(), request_id=str(index))
    tokens = run(engine)
    for index, length in enumerate(LENGTHS):
        assert tokens[str(index)] == greedy_tokens(prompt_of(length, index)), f"prompt of {length}"


def test_seeded_tokens_are_the_same_alone_and_in_a_batch() -> None:
    params = SamplingParams(seed=4, temperature=1.5, top_p=0.95, max_tokens=20)
    alone = make_engine()
    alone.add_request(prompt_of(9), params, request_id="x")
    expected = run(alone)["x"]
    mixed = make_engine(max_batch_tokens=6, cache_tokens=80)
    for index in range(4):
        mixed.add_request(prompt_of(7, index + 1), SamplingParams(seed=index, max_tokens=20))
    mixed.step()
    mixed.add_request(prompt_of(9), params, request_id="x")
    assert run(mixed)["x"] == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("max_batch_tokens", [3, 4, 5])
def test_a_prefix_hit_gives_the_same_tokens_and_is_counted(max_batch_tokens: int) -> None:
    engine = make_engine(max_batch_tokens=max_batch_tokens)
    shared = prompt_of(10)
    for index, rest in enumerate([[97], [98], [99, 100, 101], []]):
        engine.add_request(shared + rest, greedy(), request_id=str(index))
        assert run(engine)[str(index)] == greedy_tokens(shared + rest)
    # Two full pages each, and the copied beginning of a third; of the last prompt one token has to be computed.
    assert engine.stats().reused_tokens == 10 + 10 + 9
    assert engine.stats().prefill_tokens == 4 * 10 + 5 - 29
    assert (engine.stats().prefix_queries_tokens, engine.stats().prefix_hit_tokens) == (45, 29)
    assert engine.stats().cached_pages > 0


def test_without_prefix_cache_nothing_is_reused() -> None:
    engine = make_engine(prefix_cache=False)
    for _ in range(2):
        name = engine.add_request(prompt_of(10), greedy())
        assert run(engine)[name] == greedy_tokens(prompt_of(10))
    assert (engine.stats().reused_tokens, engine.stats().cached_pages) == (0, 0)


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("page_tokens", [1, 2, 8])
def test_preemption_in_a_tiny_pool_gives_the_same_tokens(prefix_cache: bool, page_tokens: int) -> None:
    engine = make_engine(cache_tokens=40, page_tokens=page_tokens, max_batch_tokens=11, prefix_cache=prefix_cache)
    for index in range(6):
        engine.add_request(prompt_of(5 + index, index), greedy(max_tokens=25, ignore_eos=True), request_id=str(index))
    seeded = SamplingParams(seed=1, max_tokens=25)
    engine.add_request(prompt_of(6), seeded, request_id="seeded")
    tokens = run(engine)
    assert engine.stats().preemptions > 0
    roomy = make_engine()
    for index in range(6):
        roomy.add_request(prompt_of(5 + index, index), greedy(max_tokens=25, ignore_eos=True), request_id=str(index))
    roomy.add_request(prompt_of(6), seeded, request_id="seeded")
    assert tokens == run(roomy)
    assert roomy.stats().preemptions == 0


def test_evicted_prefixes_are_computed_again_correctly() -> None:
    engine = make_engine(cache_tokens=32)
    for round_ in range(3):
        for index in range(4):
            name = engine.add_request([*prompt_of(12, index), 97 + round_], greedy(max_tokens=6))
            assert run(engine)[name] == greedy_tokens([*prompt_of(12, index), 97 + round_], 6)


def test_pages_of_a_prompt_that_was_aborted_halfway_are_not_taken_for_computed() -> None:
    engine = make_engine(max_batch_tokens=6)
    engine.abort(engine.add_request(prompt_of(20), greedy()))
    name = engine.add_request(prompt_of(20), greedy())
    engine.step()
    engine.abort(name)
    assert engine.stats().cached_pages == 1
    name = engine.add_request(prompt_of(20), greedy())
    assert run(engine) == {name: greedy_tokens(prompt_of(20))}


def test_abort_frees_pages_at_once_wherever_the_request_stands() -> None:
    engine = make_engine(max_batch_tokens=6, max_batch_sequences=2, prefix_cache=False)
    decoding, prefilling, waiting, stays = (
        engine.add_request(prompt_of(length, length), greedy()) for length in (3, 20, 5, 4)
    )
    engine.step()
    held = engine.stats().held_pages
    assert engine.abort(prefilling)
    assert engine.stats().held_pages == held - 5
    assert engine.abort(waiting)
    assert engine.abort(decoding)
    assert engine.stats().held_pages == 0
    assert not engine.abort(decoding)
    assert run(engine) == {stays: greedy_tokens(prompt_of(4, 4))}


def test_requests_that_join_and_leave_midway() -> None:
    engine = make_engine(max_batch_tokens=5, cache_tokens=64)
    tokens: dict[str, list[int]] = {}
    for index in range(12):
        engine.add_request(prompt_of(3 + index, index), greedy(), request_id=str(index))
        if index % 4 == 3:
            engine.abort(str(index))
        for output in engine.step() + engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        engine.check()
    for name, rest in run(engine).items():
        tokens.setdefault(name, []).extend(rest)
    assert tokens == {str(i): greedy_tokens(prompt_of(3 + i, i)) for i in range(12) if i % 4 != 3}


def test_two_engines_in_one_process_do_not_meet() -> None:
    engines = [make_engine(CacheReadingModel(salt=salt), page_tokens=4 + 4 * salt) for salt in (0, 1)]
    names = [engine.add_request(prompt_of(9), greedy()) for engine in engines]
    tokens: list[list[int]] = [[], []]
    while any(engine.has_work for engine in engines):
        for salt, engine in enumerate(engines):
            tokens[salt] += [token for output in engine.step() for token in output.token_ids]
    assert names[0] == names[1]
    assert tokens == [greedy_tokens(prompt_of(9), salt=salt) for salt in (0, 1)]


def test_eos_ends_the_text_unless_ignored_or_too_early() -> None:
    start = next(s for s in range(200) if EOS in greedy_tokens(prompt_of(5, s), 30)[3:])
    plain = greedy_tokens(prompt_of(5, start), 30)
    engine = make_engine()
    for name, options in {"plain": {}, "on": {"ignore_eos": True}, "late": {"min_tokens": 29}}.items():
        engine.add_request(prompt_of(5, start), greedy(max_tokens=30, **options), request_id=name)
    tokens = run(engine)
    assert tokens["plain"] == plain
    assert tokens["on"][: len(plain)] == plain
    assert len(tokens["on"]) == 30
    assert len(tokens["late"]) >= 29
    assert tokens["late"][: len(plain) - 1] == plain[:-1]
    assert EOS not in tokens["late"][:29]


def collect(engine: Engine) -> tuple[str, list[int], str | None]:
    text, tokens, reason = "", [], None
    while engine.has_work:
        for output in engine.step():
            text, reason = text + output.text, output.finish_reason
            tokens += output.token_ids
            assert output.finished == (output.timings is not None)
    return text, tokens, reason


def test_stop_strings_over_token_boundaries_are_not_in_the_text() -> None:
    whole = bytes(greedy_tokens(talkative_prompt(), 40)).decode()
    stop = whole[10:14]
    end = whole.index(stop)
    engine = make_engine()
    engine.add_request(talkative_prompt(), greedy(max_tokens=40, stop=["never", stop]))
    text, tokens, reason = collect(engine)
    assert text == whole[:end]
    assert (len(tokens), reason) == (end + 4, "stop")
    engine.check()
    assert engine.stats().held_pages == 0


def test_a_stop_string_that_never_completes_is_shown_in_the_end() -> None:
    whole = bytes(greedy_tokens(talkative_prompt(), 12)).decode()
    engine = make_engine()
    engine.add_request(talkative_prompt(), greedy(stop=whole[-3:] + "?"))
    assert collect(engine)[::2] == (whole, "length")


def test_a_stop_string_with_the_last_allowed_token_counts_as_stop() -> None:
    whole = bytes(greedy_tokens(talkative_prompt(), 12)).decode()
    assert whole.index(whole[-4:]) == 8
    engine = make_engine()
    engine.add_request(talkative_prompt(), greedy(stop=whole[-4:]))
    assert collect(engine)[::2] == (whole[:-4], "stop")


def test_stop_token_ids_end_the_output_and_are_not_in_the_text() -> None:
    expected = greedy_tokens(talkative_prompt(), 12)
    end = expected.index(expected[5])
    engine = make_engine()
    engine.add_request(talkative_prompt(), greedy(stop_token_ids=[expected[5]]))
    assert collect(engine) == (bytes(expected[:end]).decode(), expected[: end + 1], "stop")


def test_text_continues_the_prompt() -> None:
    engine = make_engine()
    engine.add_request([*"é".encode()[:1]], greedy(max_tokens=1))
    text, tokens, _ = collect(engine)
    assert text == "\ufffd" + chr(tokens[0]), "the prompt's unfinished character belongs to the text that ends it"


def test_the_context_ends_the_output() -> None:
    engine = make_engine(CacheReadingModel(max_position_embeddings=16))
    engine.add_request(prompt_of(10), greedy(max_tokens=500, ignore_eos=True))
    _, tokens, reason = collect(engine)
    assert (len(tokens), reason) == (6, "length")


def test_logprobs_come_with_every_token() -> None:
    engine = make_engine()
    engine.add_request(prompt_of(6), greedy(logprobs=2))
    while engine.has_work:
        for output in engine.step():
            assert [logprob.token_id for logprob in output.logprobs] == list(output.token_ids)
            assert output.logprobs[0].top[0] == (output.token_ids[0], output.logprobs[0].logprob)


def test_a_failed_step_can_be_repeated() -> None:
    model = CacheReadingModel()
    engine = make_engine(model, max_batch_tokens=7)
    names = [engine.add_request(prompt_of(9, index), greedy()) for index in range(2)]
    model.fail_at_call, model.failure = 1, RuntimeError("a backend failed")
    tokens: dict[str, list[int]] = {name: [] for name in names}
    failures = 0
    while engine.has_work:
        try:
            for output in engine.step():
                tokens[output.request_id] += output.token_ids
        except RuntimeError:
            failures += 1
        engine.check()
    assert failures == 1
    assert list(tokens.values()) == [greedy_tokens(prompt_of(9, index)) for index in range(2)]


@pytest.mark.parametrize("damaged", [False, True])
def test_recovery_after_an_interruption_anywhere(damaged: bool) -> None:
    engine = make_engine(max_batch_tokens=7)
    for index in range(3):
        engine.add_request(prompt_of(9, index), greedy())
    engine.step()
    engine.step()
    if damaged:
        engine._scheduler.running[0].pages.pop()
    engine.recover()
    engine.check()
    assert not engine.has_work
    assert engine.stats().held_pages == 0
    assert (engine.stats().cached_pages == 0) == damaged
    name = engine.add_request(prompt_of(9), greedy())
    assert run(engine) == {name: greedy_tokens(prompt_of(9))}


def test_stats_count_what_happened() -> None:
    engine = make_engine(cache_tokens=100, max_batch_tokens=8)
    engine.add_request(prompt_of(20), greedy(max_tokens=5, ignore_eos=True))
    assert (engine.stats().waiting, engine.stats().running) == (1, 0)
    run(engine)
    stats = engine.stats()
    assert (stats.steps, stats.prefill_tokens, stats.decode_tokens) == (3 + 4, 20, 4)
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    assert stats.free_pages + stats.held_pages + stats.cached_pages == 25
    assert stats.cache_bytes == 100 * stats.bytes_per_token == 100 * 2 * 2 * 4


@pytest.mark.parametrize(
    ("prompt", "error", "complaint"),
    [
        ("", OptionError, "prompt: expected at least one token, got none"),
        ([], OptionError, "prompt: expected at least one token, got none"),
        ([5, VOCAB_SIZE], OptionError, "prompt: expected token ids from 0 to 256, got 257"),
        ([-1], OptionError, "prompt: expected token ids from 0 to 256, got -1"),
        ([1.5], OptionError, "prompt: expected token ids"),
        ([97] * 256, CapacityError, r"prompt: expected at most 255 tokens \(the model's context is 256"),
    ],
)
def test_unusable_prompts_are_refused(prompt: object, error: type[Exception], complaint: str) -> None:
    engine = make_engine()
    with pytest.raises(error, match=complaint):
        engine.add_request(prompt)
    assert not engine.has_work


def test_a_request_beyond_the_pool_is_refused_and_others_go_on() -> None:
    engine = make_engine(cache_tokens=20)
    name = engine.add_request(prompt_of(4), greedy())
    with pytest.raises(CapacityError, match=r"prompt: expected at most 20 tokens \(the page pool\), got 21 tokens\."):
        engine.add_request(prompt_of(21), greedy())
    assert run(engine) == {name: greedy_tokens(prompt_of(4))}


@pytest.mark.parametrize("prompt", [1, 6, 19, 20])
def test_the_end_of_the_pool_ends_the_output(prompt: int) -> None:
    engine = make_engine(cache_tokens=20)
    engine.add_request(prompt_of(prompt), greedy(max_tokens=500, ignore_eos=True))
    _, tokens, reason = collect(engine)
    assert (len(tokens), reason) == (21 - prompt, "length"), "the last token needs no row"
    roomy = make_engine()
    roomy.add_request(prompt_of(prompt), greedy(max_tokens=21 - prompt, ignore_eos=True))
    assert collect(roomy)[1] == tokens


def test_ids_are_unique_among_live_requests() -> None:
    engine = make_engine()
    engine.add_request([97], request_id="request-0")
    with pytest.raises(OptionError, match="request_id: expected one that no live request has, got 'request-0'"):
        engine.add_request([97], request_id="request-0")
    assert engine.add_request([97]) != "request-0"
    engine.abort("request-0")
    assert engine.add_request([97], request_id="request-0") == "request-0"


def test_options_are_checked_and_unknown_ones_refused() -> None:
    for option, value in {"cache_tokens": 0, "page_tokens": 5, "cache_format": "f8", "max_batch_tokens": 0}.items():
        with pytest.raises(OptionError, match="expected"):
            make_engine(**{option: value})
    with pytest.raises(TypeError, match="page_size"):
        make_engine(page_size=16)
    engine = make_engine()
    with pytest.raises(OptionError, match="stop_token_ids: expected token ids from 0 to 256"):
        engine.add_request([97], SamplingParams(stop_token_ids=[300]))


def test_without_a_tokenizer_only_ids_are_understood() -> None:
    engine = Engine(CacheReadingModel(), cache_tokens=256)
    with pytest.raises(TokenizerError, match="token ids"):
        engine.add_request("hello")
    with pytest.raises(TokenizerError, match="stop_token_ids"):
        engine.add_request([97], SamplingParams(stop="x"))
    engine.add_request(prompt_of(5), greedy())
    assert collect(engine)[:2] == ("", greedy_tokens(prompt_of(5)))


def test_the_default_pool_is_bounded() -> None:
    engine = Engine(CacheReadingModel(), ByteTokenizer())
    stats = engine.stats()
    assert stats.free_pages == 32768 // 64
    assert stats.cache_bytes == 32768 * stats.bytes_per_token


def test_a_step_without_work_is_nothing() -> None:
    engine = make_engine()
    assert engine.step() == []
    assert not engine.has_work
