"""Output that follows a grammar: JSON schemas and tool calls, as llguidance's token masks for the sampler.

A compiled grammar says at each step which tokens may come. Where it is complete, only the end of the text may.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import llguidance
import llguidance.numpy
import numpy
import torch
from torch import Tensor

from latentkv.engine.engine import Engine
from latentkv.engine.sampler import Constraint
from latentkv.models.tokenizer import Tokenizer
from latentkv.server.api_error import APIError

logger = logging.getLogger(__name__)
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# Free white space lets a weak model write blanks for ever.
JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class Grammars:
    """Compiles grammars for one engine's tokenizer; safe to call from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def json(self, schema: Mapping[str, Any], *, field: str) -> Callable[[], Constraint]:
        """Constraints for JSON that follows a schema, one for each choice. APIError 400 for one that cannot be kept."""
        return self._compiled(llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides=JSON_STYLE), field)

    def one_of(self, calls: Sequence[tuple[str, Mapping[str, Any], str]], *, field: str) -> Callable[[], Constraint]:
        """Constraints for exactly one of several forms: literal text, JSON of a schema, literal text."""
        rules = [f"start: {' | '.join(f'form{index}' for index in range(len(calls)))}"]
        for index, (begin, schema, end) in enumerate(calls):
            body = json.dumps({**schema, "x-guidance": JSON_STYLE})
            rules.append(f"form{index}: {_literal(begin)} arguments{index} {_literal(end)}")
            rules.append(f"arguments{index}: %json {body}")
        return self._compiled(llguidance.LLMatcher.grammar_from_lark("\n".join(rules)), field)

    def _compiled(self, grammar: str, field: str) -> Callable[[], Constraint]:
        tokenizer = self._tokenizer
        first = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if first.is_error():
            reason = first.get_error().strip().partition("\n")[0]
            raise APIError(400, f"{field}: it cannot be enforced: {reason}", param=field, code="invalid_schema")
        vocab = self._engine.model.vocab_size
        ends = tuple(sorted(self._engine.model.eos_token_ids))
        return lambda: _Matcher(first.deep_copy(), vocab, ends)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        engine = self._engine
        if not isinstance(engine.tokenizer, Tokenizer) or not engine.model.eos_token_ids:
            message = "response_format: this model has no tokenizer or no end of text, so no grammar can be enforced."
            raise APIError(400, message, param="response_format")
        ends = sorted(engine.model.eos_token_ids)
        return llguidance.LLTokenizer(engine.tokenizer.to_json(), n_vocab=engine.model.vocab_size, eos_token=ends)


class _Matcher:
    """One request's place in its grammar; used by the engine's thread."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int, ends: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._ends = ends
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocab)

    def allowed(self) -> Tensor:
        """[vocab] bool."""
        if not self._matcher.is_stopped():
            llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
            bits = numpy.unpackbits(self._bits.view(numpy.uint8), bitorder="little", count=self._vocab)
            allowed = torch.from_numpy(bits).bool()
            if bool(allowed.any()):
                return allowed
        if self._matcher.is_error():
            logger.error("a grammar failed, its output ends early: %s", self._matcher.get_error())
        over = torch.zeros(self._vocab, dtype=torch.bool)
        over[list(self._ends)] = True
        return over

    def advance(self, token_id: int) -> None:
        """Take a token."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
