"""Requests go where their beginning was sent before, unless that replica is too busy or gone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from latentkv.integrations.prefix_routing import MOST_PIECES, PIECE_CHARACTERS, PrefixTable, prompt_digests


def chain(prompt: Any, **fields: Any) -> tuple[bytes, ...]:
    return prompt_digests(json.dumps({"model": "tiny", "prompt": prompt, **fields}).encode())


def common(first: tuple[bytes, ...], second: tuple[bytes, ...]) -> int:
    return sum(one == other for one, other in zip(first, second, strict=False))


def test_prompts_share_as_many_digests_as_whole_pieces() -> None:
    text = "".join(chr(97 + index % 26) for index in range(4 * PIECE_CHARACTERS))
    whole = chain(text)
    assert len(whole) == 4
    assert common(whole, chain(text[: 2 * PIECE_CHARACTERS] + "!" * PIECE_CHARACTERS)) == 2
    assert common(whole, chain("!" + text[1:])) == 0
    assert chain(text[: PIECE_CHARACTERS - 1]) == ()
    assert len(chain(text * MOST_PIECES)) == MOST_PIECES


def test_other_models_and_other_fields() -> None:
    text = "x" * PIECE_CHARACTERS
    assert chain(text) != chain(text, model="other")
    assert chain(text) == chain(text, temperature=1)


def test_conversations_and_token_ids_begin_alike_too() -> None:
    turns = [{"role": "user", "content": "y" * 600}, {"role": "assistant", "content": "z"}]
    longer = [*turns, {"role": "user", "content": "w" * 600}]
    first, second = (prompt_digests(json.dumps({"messages": one}).encode()) for one in (turns, longer))
    assert common(first, second) == len(first) == 2
    assert common(chain(list(range(500))), chain([*range(500), 7, 8])) == len(chain(list(range(500))))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'"text"', b'{"prompt": null}', b'{"prompt": 5}', b"\xff"])
def test_what_is_no_prompt_has_no_digests(body: bytes) -> None:
    assert prompt_digests(body) == ()


def test_the_longest_beginning_decides() -> None:
    table = PrefixTable()
    table.sent((b"1", b"2"), "a")
    table.sent((b"1", b"2", b"3"), "b")
    loads = {"a": 0, "b": 3, "c": 1}
    assert table.ranked((b"1", b"2", b"3", b"4"), loads) == ["b", "a", "c"]
    assert table.ranked((b"9",), loads) == ["a", "c", "b"]
    assert table.ranked((), loads) == ["a", "c", "b"]


def test_a_busy_replica_is_passed_over() -> None:
    table = PrefixTable(imbalance=2)
    table.sent((b"1",), "a")
    assert table.ranked((b"1",), {"a": 2, "b": 0})[0] == "a"
    assert table.ranked((b"1",), {"a": 3, "b": 0})[0] == "b"


def test_replicas_that_are_gone_are_forgotten() -> None:
    table = PrefixTable()
    table.sent((b"1",), "a")
    table.sent((b"2",), "b")
    assert table.ranked((b"1",), {"b": 0, "c": 0}) == ["b", "c"]
    table.keep(["b"])
    assert table.ranked((b"1",), {"a": 5, "b": 0})[0] == "b"
    assert table.ranked((b"2",), {"a": 0, "b": 5})[0] == "b"


def test_the_oldest_beginnings_are_forgotten_first() -> None:
    table = PrefixTable(most_digests=2)
    for digest, replica in ((b"1", "a"), (b"2", "b"), (b"1", "a"), (b"3", "c")):
        table.sent((digest,), replica)
    loads = {"x": 0, "a": 1, "b": 1, "c": 1}
    assert [table.ranked((digest,), loads)[0] for digest in (b"1", b"2", b"3")] == ["a", "x", "c"]
