"""Each field is obeyed or refused with 400 and its name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from support.live_server import MODEL, Live

TEXT = {"model": MODEL, "prompt": "x", "max_tokens": 2}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "now"}}
USER = {"role": "user", "content": "x"}

REFUSED_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"no_such": 1}, "no_such"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 65}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1_000_000}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"seed": "x"}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [99999]}, "prompt"),
    ({"prompt": "x" * 20_000}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
]
REFUSED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"no_such": 1}, "no_such"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"functions": []}, "functions"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"store": True}, "store"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content[0].type"),
    ({"messages": [{**USER, "name": "ann"}]}, "messages[0].name"),
    ({"messages": [{**USER, "mood": "good"}]}, "messages[0].mood"),
    ({"messages": [{**USER, "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "browser"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
]
UNSOUND = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}

NEUTRAL: list[dict[str, Any]] = [
    {"store": False, "service_tier": "auto", "modalities": ["text"], "audio": None, "functions": None},
    {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": True},
    {"tools": [TOOL], "tool_choice": "none"},
    {"response_format": {"type": "text"}, "logprobs": False, "n": 1, "stop": None, "stream_options": None},
    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, USER]},
    {"max_completion_tokens": 2},
]


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(("change", "param"), REFUSED_TEXT, ids=[str(change)[:50] for change, _ in REFUSED_TEXT])
def test_refused_in_text(live: Live, change: dict[str, Any], param: str) -> None:
    error = refusal(live.post("/v1/completions", TEXT | change))
    assert error["param"] == param
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(("change", "param"), REFUSED_CHAT, ids=[str(change)[:50] for change, _ in REFUSED_CHAT])
def test_refused_in_chat(live: Live, change: dict[str, Any], param: str) -> None:
    error = refusal(live.post("/v1/chat/completions", CHAT | change))
    assert error["param"] == param


def test_a_schema_that_cannot_be_kept(live: Live) -> None:
    error = refusal(live.post("/v1/chat/completions", CHAT | {"response_format": UNSOUND}))
    assert (error["param"], error["code"]) == ("response_format", "invalid_schema")


@pytest.mark.parametrize("change", NEUTRAL, ids=[str(change)[:50] for change in NEUTRAL])
def test_what_asks_for_nothing_is_taken(live: Live, change: dict[str, Any]) -> None:
    answer = live.post("/v1/chat/completions", CHAT | change)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_missing_fields(live: Live, name: str) -> None:
    error = refusal(live.post("/v1/completions", {key: value for key, value in TEXT.items() if key != name}))
    assert (error["param"], error["code"]) == (name, "missing_parameter")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"model": NaN}', b'{"a": "\\ud800"}', b"\xff", b"[" * 5000])
def test_bodies_that_are_no_request(live: Live, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refusal(httpx.post(f"{live.url}/v1/completions", content=body, headers=headers, timeout=60))


def test_the_wrong_door(live: Live) -> None:
    assert live.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert live.get("/v1/completions").status_code == 405
