"""Guesses at what a sequence says next, looked up in its own text: speculative decoding without a second model.

A text that copies, edits or repeats itself says things again: where its last tokens stood before, what followed then
is proposed (prompt lookup decoding: Saxena, 2023; the verification: Leviathan et al., arXiv:2211.17192). The model
computes the guesses as rows of the same call; those it would have said itself are kept (verify.py), so that no token
changes.

Knows neither tensors nor text. A lookup belongs to one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentkv.errors import OptionError, sentence

# Lengths of endings that are looked up, the longest first: one token alone says too little.
ENDINGS = (4, 3, 2)
FIRST_PAUSE = 8
LONGEST_PAUSE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How much is guessed.

    tokens:        most guesses for one sequence in one step. Three by default: linear kernels take four rows at the
                   price of one, and with the same bits as one.
    max_sequences: with more of them generating at once nothing is guessed: the machine has enough to do
    """

    tokens: int = 3
    max_sequences: int = 8

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("max_sequences", self.max_sequences)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(sentence(f"speculation {name}", expected="1 or more", got=repr(value)))


def parse_speculation(text: str | None) -> Speculation | None:
    """ "ngram:4" as a Speculation; None and "off" as None. Raises OptionError for anything else."""
    if text is None or text == "off":
        return None
    kind, colon, tokens = text.partition(":")
    if kind != "ngram" or (colon and not tokens.isdecimal()):
        raise OptionError(sentence("speculative", expected="off, ngram or ngram:TOKENS", got=repr(text)))
    return Speculation(tokens=int(tokens)) if colon else Speculation()


class NgramLookup:
    """One sequence's endings and where they stood, and how well guesses went lately.

    After a guess that was wrong from its first token fewer tokens are guessed; after two in a row none for a while,
    each time longer.
    """

    def __init__(self, options: Speculation) -> None:
        self._most = options.tokens
        self._limit = options.tokens
        self._places: dict[tuple[int, ...], int] = {}
        self._looked_at = 0
        self._misses = 0
        self._pause = FIRST_PAUSE
        self._resume_at = 0

    def propose(self, token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to `most` guesses at what follows `token_ids`; none where nothing is known or guessing went badly."""
        most = min(most, self._limit)
        if most < 1 or len(token_ids) < self._resume_at:
            return ()
        self._remember(token_ids)
        place = self._find(token_ids)
        if place is None:
            return ()
        guesses: list[int] = []
        for at in range(place, place + most):
            # Beyond the end the guesses themselves go on: a text that repeats itself goes round.
            guesses.append(token_ids[at] if at < len(token_ids) else guesses[at - len(token_ids)])
        return tuple(guesses)

    def learn(self, *, proposed: int, accepted: int, length: int) -> None:
        """What came of the last guesses; `length` is the sequence's now."""
        if accepted:
            self._misses, self._pause = 0, FIRST_PAUSE
            self._limit = min(self._most, self._limit * 2) if accepted == proposed else max(1, accepted)
            return
        self._limit = max(1, self._limit // 2)
        self._misses += 1
        if self._misses >= 2:
            self._misses, self._resume_at = 0, length + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _remember(self, token_ids: Sequence[int]) -> None:
        """Note where each ending stands; not of the last token, which nothing follows yet."""
        for end in range(self._looked_at, len(token_ids) - 1):
            for size in ENDINGS:
                if end + 1 >= size:
                    self._places[tuple(token_ids[end + 1 - size : end + 1])] = end + 1
        self._looked_at = max(self._looked_at, len(token_ids) - 1)

    def _find(self, token_ids: Sequence[int]) -> int | None:
        """Where what follows the longest known ending stood last."""
        for size in ENDINGS:
            place = self._places.get(tuple(token_ids[-size:])) if len(token_ids) >= size else None
            if place is not None:
                return place
        return None
