"""The official client, unchanged, against a real server: what it asks for is what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from latentkv.engine.llm import LLM
from latentkv.engine.sampling_params import SamplingParams
from support.live_server import MODEL, Live

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "cold": {"type": "boolean"}},
    "required": ["city", "cold"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client() as client:
        yield client


@pytest.fixture(scope="module")
def offline(tool_model: Path) -> LLM:
    return LLM(tool_model, dtype="float32")


def test_text_as_offline(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.completions.create(model=MODEL, prompt="one two", max_tokens=20, temperature=0)
    expected = offline.generate("one two", SamplingParams(temperature=0, max_tokens=20))[0]
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("one two")
    assert answer.usage.completion_tokens == len(expected.token_ids)


def test_chat_as_offline(client: openai.OpenAI, offline: LLM) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=20, temperature=0)
    expected = offline.chat(CHAT, SamplingParams(temperature=0, max_tokens=20))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"


def test_the_stream_is_the_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "max_tokens": 20, "temperature": 0, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usages = ["", ""], [None, None], []
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1].completion_tokens == whole.usage.completion_tokens == 40


def test_a_stream_of_text_with_echo(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": ["ab", "cd"], "max_tokens": 5, "temperature": 0, "echo": True}
    whole = client.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert [text[:2] for text in texts] == ["ab", "cd"]


@pytest.mark.parametrize("prompt", ["ab", ["ab"], [97, 98], [[97, 98]]], ids=["text", "texts", "ids", "lists of ids"])
def test_every_kind_of_prompt(client: openai.OpenAI, live: Live, prompt: Any) -> None:
    if not isinstance(prompt, str) and prompt != ["ab"]:
        ids = live.post("/tokenize", {"prompt": "ab"}).json()["tokens"]
        prompt = ids if prompt == [97, 98] else [ids]
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
    assert (
        answer.choices[0].text
        == client.completions.create(model=MODEL, prompt="ab", max_tokens=6, temperature=0).choices[0].text
    )


def test_logprobs_of_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert len(entries) == 5
    for entry in entries:
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )


def test_logprobs_of_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=5, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    assert logprobs.token_logprobs[0] == max(logprobs.top_logprobs[0].values())


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "y", "max_tokens": 24, "temperature": 1.5, "seed": 7, "n": 3}
    first, second = client.completions.create(**asked), client.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3


def test_stop_ends_before_its_string(client: openai.OpenAI) -> None:
    free = client.completions.create(model=MODEL, prompt="one two", max_tokens=20, temperature=0).choices[0].text
    stop = free[4:6]
    for asked in (stop, ["never in there", stop]):
        answer = client.completions.create(model=MODEL, prompt="one two", max_tokens=20, temperature=0, stop=asked)
        assert answer.choices[0].text == free[: free.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_a_bias_decides(client: openai.OpenAI, live: Live) -> None:
    wanted = live.post("/tokenize", {"prompt": "Q"}).json()["tokens"][0]
    answer = client.completions.create(
        model=MODEL, prompt="one", max_tokens=4, temperature=0, logit_bias={str(wanted): 100}
    )
    assert answer.choices[0].text == "QQQQ"


def test_extensions_of_sampling(client: openai.OpenAI) -> None:
    options = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}
    answer = client.completions.create(
        model=MODEL, prompt="one", max_tokens=4, presence_penalty=0.5, frequency_penalty=0.5, extra_body=options
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_json_follows_its_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, temperature=1.0, seed=3, n=4, max_tokens=60, response_format=form
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content or "")
        assert value["city"] in ("Rome", "Oslo")
        assert isinstance(value["cold"], bool)


def test_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        temperature=0,
        max_tokens=300,
        response_format={"type": "json_object"},
        logit_bias={"92": 5},
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_tool_call(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "tools": TOOLS, "tool_choice": choice, "temperature": 0}
    if stream:
        chunks = list(client.chat.completions.create(**asked, max_tokens=150, stream=True))
        calls = [call for chunk in chunks for part in chunk.choices for call in part.delta.tool_calls or []]
        reason = chunks[-1].choices[0].finish_reason
        assert not any(part.delta.content for chunk in chunks for part in chunk.choices)
    else:
        answer = client.chat.completions.create(**asked, max_tokens=150)
        calls, reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert reason == "tool_calls"
    assert len(calls) == 1
    arguments = json.loads(calls[0].function.arguments)
    if calls[0].function.name == "weather":
        assert arguments["city"] in ("Rome", "Oslo")
    else:
        assert (calls[0].function.name, arguments, choice) == ("now", {}, "required")


def test_a_conversation_with_tools_goes_on(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages: Any = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=5, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_concurrent_answers_are_the_offline_ones(live: Live, offline: LLM) -> None:
    prompts = [f"{'abc' * (i % 7)} number {i}" for i in range(24)]
    expected = [offline.generate(prompt, SamplingParams(temperature=0, max_tokens=16))[0].text for prompt in prompts]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.completions.create(model=MODEL, prompt=prompt, max_tokens=16, temperature=0)
                for prompt in prompts
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == expected


def test_choices_share_the_pages_of_their_prompt(live: Live, client: openai.OpenAI) -> None:
    before = live.metric("latentkv_prefix_cache_hits_total")
    prompt = "the same long prompt for all of them, " * 8
    client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, n=3)
    page = 64
    assert live.metric("latentkv_prefix_cache_hits_total") - before >= 2 * (len(prompt) // page * page)


def test_models_and_tokens(client: openai.OpenAI, live: Live) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="other"):
        client.completions.create(model="other", prompt="x")
    tokens = live.post("/tokenize", {"prompt": "héllo"}).json()
    assert tokens["count"] == 6
    assert live.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": "héllo"}
    chat = live.post("/tokenize", {"messages": CHAT}).json()["tokens"]
    assert live.post("/detokenize", {"tokens": chat}).json()["prompt"].endswith("<|im_start|>assistant\n")
