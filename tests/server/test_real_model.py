"""SmolLM2 behind the official client: sense, and JSON that keeps its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from latentkv.engine.engine import Engine
from latentkv.models.load import load_model
from support.live_server import MODEL, Live, serving

pytestmark = pytest.mark.model
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def load() -> Engine:
    loaded = load_model()
    return Engine(loaded.model, loaded.tokenizer, cache_tokens=1024)


@pytest.fixture(scope="module")
def smollm() -> Iterator[Live]:
    with serving(load) as live:
        yield live


def ask(live: Live, question: str, **options: Any) -> str:
    with live.client() as client:
        messages: Any = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=60, **options)
    return answer.choices[0].message.content or ""


def test_it_knows_a_capital(smollm: Live) -> None:
    assert "Paris" in ask(smollm, "What is the capital of France?")


def test_it_invents_a_person(smollm: Live) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    person = json.loads(ask(smollm, "Invent a person, as JSON.", response_format=form))
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


def test_tools_that_its_template_cannot_show_are_refused(smollm: Live) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "now"}}],
    }
    answer = smollm.post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
