"""Log-probabilities in the two shapes of OpenAI's API, with the text and the bytes of each token."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from latentkv.engine.output import Output
from latentkv.engine.text import Tokenizer
from latentkv.models.tokenizer import Tokenizer as ModelTokenizer

# JSON has no infinity; OpenAI's documents name this number for "as good as impossible".
LEAST = -9999.0


class CompletionLogprobs:
    """The shape of text completions, for one choice; keeps the place in its text. Without a tokenizer: ids as text."""

    def __init__(self, tokenizer: Tokenizer | None, alternatives: int | None) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._offset = 0

    def add(self, output: Output) -> dict[str, Any]:
        """The object for one output."""
        tokens = [token_text(self._tokenizer, token.token_id) for token in output.logprobs]
        tops = [
            {token_text(self._tokenizer, token): _finite(value) for token, value in one.top} for one in output.logprobs
        ]
        offsets = [self._offset] * len(tokens)
        self._offset += len(output.text)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(token.logprob) for token in output.logprobs],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def joined(self, parts: list[dict[str, Any]]) -> dict[str, Any] | None:
        """One object for a whole text; None when log-probabilities were not asked for."""
        if self._alternatives is None:
            return None
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: [value for part in parts for value in part[name]] for name in names}


def chat_logprobs(tokenizer: Tokenizer | None, output: Output) -> list[dict[str, Any]]:
    """The entries of a chat completion's `logprobs.content` for one output."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = token_text(tokenizer, token_id)
        return {"token": text, "logprob": _finite(logprob), "bytes": _bytes(tokenizer, token_id, text)}

    return [
        {**entry(one.token_id, one.logprob), "top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in output.logprobs
    ]


def token_text(tokenizer: Tokenizer | None, token_id: int) -> str:
    """A token as text, with the space it begins with."""
    if tokenizer is None:
        return f"token_id:{token_id}"
    raw = _token_bytes(tokenizer, token_id)
    if raw is not None:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    # Decoders strip the leading space of the first token only: the second one shows it.
    once, twice = (tokenizer.decode([token_id] * times, skip_special_tokens=False) for times in (1, 2))
    return twice[len(once) :]


def _finite(value: float) -> float:
    return max(value, LEAST)


def _bytes(tokenizer: Tokenizer | None, token_id: int, text: str) -> list[int] | None:
    raw = _token_bytes(tokenizer, token_id)
    if raw is not None:
        return list(raw)
    return None if tokenizer is None or "\ufffd" in text else list(text.encode())


def _token_bytes(tokenizer: Tokenizer | None, token_id: int) -> bytes | None:
    """The bytes of a token that is a part of a character; None for all others."""
    if not isinstance(tokenizer, ModelTokenizer) or "\ufffd" not in tokenizer.decode([token_id]):
        return None
    token = tokenizer.token(token_id) or ""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    table = _byte_of_character()
    return bytes(table[character] for character in token) if token and set(token) <= table.keys() else None


@cache
def _byte_of_character() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as (GPT-2): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
