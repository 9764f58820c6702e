from __future__ import annotations

import pytest
from fakes import EOS, ByteTokenizer, CacheReadingModel, greedy, greedy_tokens, prompt_of

from latentkv.engine.llm import LLM, GenerationInterrupted
from latentkv.errors import CapacityError, OptionError, TokenizerError


def make(model: CacheReadingModel | None = None, **options: object) -> LLM:
    defaults = {"tokenizer": ByteTokenizer(), "page_tokens": 4, "cache_tokens": 512, "cache_format": "f32"}
    return LLM(model or CacheReadingModel(), **{**defaults, **options})


def text_after(prompt: str, max_tokens: int = 12) -> str:
    return ByteTokenizer().decode(greedy_tokens(list(prompt.encode()), max_tokens))


def test_completions_come_in_the_order_of_the_prompts() -> None:
    prompts = ["a", "some longer prompt", "hé"]
    params = [greedy(max_tokens=9), greedy(max_tokens=3), greedy(max_tokens=5)]
    completions = make().generate(prompts, params)
    assert [c.text for c in completions] == [text_after(p, s.max_tokens) for p, s in zip(prompts, params, strict=True)]
    assert [c.prompt_token_ids for c in completions] == [tuple(p.encode()) for p in prompts]
    for completion, one in zip(completions, params, strict=True):
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == EOS else "length")
        assert len(completion.token_ids) == one.max_tokens or completion.finish_reason == "stop"
    assert all(c.timings.prefill_ms > 0 for c in completions)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [("abc", 1), ([97, 98], 1), (["abc"], 1), ([[97, 98], [99]], 2), (["abc", [97]], 2), ([], 0)],
)
def test_prompts_may_be_text_or_ids_one_or_many(prompts: object, count: int) -> None:
    assert len(make().generate(prompts, greedy(max_tokens=2), progress=count == 2)) == count


def test_streamed_pieces_make_up_the_text_and_streams_share_the_engine() -> None:
    llm = make()
    first, second = llm.stream("hello", greedy()), llm.stream([120, 121], greedy())
    pieces = [next(first), next(second)]
    (between,) = llm.generate("between", greedy())
    assert between.text == text_after("between")
    assert pieces[0] + "".join(first) == text_after("hello")
    assert pieces[1] + "".join(second) == text_after("xy")
    assert llm.stats().held_pages == 0


def test_a_stream_that_is_closed_frees_its_pages() -> None:
    llm = make()
    stream = llm.stream("hello", greedy())
    next(stream)
    assert llm.stats().held_pages > 0
    stream.close()
    assert llm.stats().held_pages == 0
    assert not llm.engine.has_work


def test_interruption_frees_everything_and_keeps_what_was_finished() -> None:
    model = CacheReadingModel()
    llm = make(model)
    model.fail_at_call = 4
    with pytest.raises(KeyboardInterrupt) as caught:
        llm.generate(["short", "long"], [greedy(max_tokens=3), greedy(max_tokens=30)])
    assert isinstance(caught.value, GenerationInterrupted)
    finished, unfinished = caught.value.completions
    assert finished is not None
    assert finished.text == text_after("short", 3)
    assert unfinished is None
    assert llm.stats().held_pages == 0
    llm.engine.check()
    assert llm.generate("again", greedy())[0].text == text_after("again")


def test_interruption_of_a_stream_frees_everything() -> None:
    model = CacheReadingModel()
    llm = make(model)
    model.fail_at_call = 2
    with pytest.raises(KeyboardInterrupt):
        list(llm.stream("hello", greedy()))
    assert llm.stats().held_pages == 0
    assert not llm.engine.has_work


def test_one_bad_prompt_is_refused_before_anything_is_computed() -> None:
    model = CacheReadingModel()
    llm = make(model)
    with pytest.raises(CapacityError):
        llm.generate(["fine", prompt_of(300)], greedy())
    assert not llm.engine.has_work
    assert model.calls == []


def test_chat_renders_the_messages() -> None:
    llm = make()
    messages = [{"role": "user", "content": "hi"}]
    assert llm.chat_prompt(messages) == list(b"<user>hi<assistant>")
    assert llm.chat(messages, greedy()).text == text_after("<user>hi<assistant>")
    with pytest.raises(TokenizerError, match="chat"):
        make(tokenizer=None).chat(messages)


def test_options_that_cannot_be_obeyed_are_refused() -> None:
    with pytest.raises(OptionError, match="params: expected one, or 2"):
        make().generate(["a", "b"], [greedy()])
    for option in ({"dtype": "float32"}, {"attention": "gqa"}, {"activations": "bf16"}, {"memory_bytes": 9}):
        with pytest.raises(OptionError, match="dtype, activations, attention, deterministic and memory_bytes"):
            make(**option)
    with pytest.raises(TypeError, match="page_size"):
        make(page_size=3)
