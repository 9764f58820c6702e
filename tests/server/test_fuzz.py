"""Whatever is sent, the server answers below 500 and nothing stays behind."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from support.live_server import MODEL, Live

BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 300),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.001, 100),
    "logit_bias": st.dictionaries(st.integers(0, 263).map(str), st.floats(-100, 100), max_size=4),
    "stop_token_ids": st.lists(st.integers(0, 263), max_size=3),
    "min_tokens": st.integers(0, 4),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "user": st.text(max_size=8),
    "echo": st.booleans(),
    "logprobs": st.integers(0, 20),
}
FIELDS = st.fixed_dictionaries({}, optional={name: values | BODIES for name, values in VALUES.items()})
SOUND = st.fixed_dictionaries({}, optional=VALUES)
PROMPTS = st.text(max_size=40) | st.lists(st.text(max_size=10), max_size=3) | st.lists(st.integers(-1, 270), max_size=9)
KEYWORDS = ("type", "properties", "items", "enum", "anyOf", "pattern")
QUIET = settings(max_examples=60, suppress_health_check=list(HealthCheck))
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def http(live: Live) -> Any:
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client
    live.wait_until_idle()


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


@QUIET
@given(body=BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_any_json(http: httpx.Client, path: str, body: Any) -> None:
    answer = http.post(path, content=encoded(body), headers=JSON)
    assert answer.status_code < 500, answer.text


@QUIET
@given(fields=FIELDS, prompt=PROMPTS)
def test_any_fields(http: httpx.Client, fields: dict[str, Any], prompt: Any) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, **fields}
    answer = http.post("/v1/completions", content=encoded(body), headers=JSON)
    assert answer.status_code in (200, 400), answer.text


@QUIET
@given(fields=SOUND, prompt=st.text(min_size=1, max_size=40, alphabet=st.characters(exclude_categories=["Cs"])))
def test_sound_fields_are_obeyed_or_contradict_each_other(
    http: httpx.Client, fields: dict[str, Any], prompt: str
) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, **fields}
    answer = http.post("/v1/completions", content=encoded(body), headers=JSON)
    if answer.status_code == 200:
        assert '"error"' not in answer.text
    else:
        assert answer.json()["error"]["param"] in ("min_tokens", "echo"), answer.text


@QUIET
@given(
    schema=BODIES
    | st.dictionaries(st.sampled_from(["type", "properties", "items", "enum", "anyOf", "pattern"]), BODIES)
)
def test_any_schema(http: httpx.Client, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 3, "response_format": form}
    answer = http.post("/v1/chat/completions", content=encoded(body), headers=JSON)
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize("keyword", ["items", "not", "additionalProperties"])
def test_a_deep_schema(http: httpx.Client, keyword: str) -> None:
    schema: Any = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", keyword: schema}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 3, "response_format": form}
    assert http.post("/v1/chat/completions", json=body).status_code in (200, 400)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_the_documented_api(live: Live, http: httpx.Client, mode: GenerationMode) -> None:
    """schemathesis draws requests from the OpenAPI document, those that fit it and those that do not."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.body:
            send_many(operation, mode)


def send_many(operation: Any, mode: GenerationMode) -> None:
    @settings(QUIET, max_examples=12)
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        answer = case.call(timeout=60)
        assert answer.status_code < 500, (case, answer.text)

    send()
