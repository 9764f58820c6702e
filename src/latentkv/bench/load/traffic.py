"""What is asked, and when: lengths, prompts and arrivals, all from one seed. Knows no network and no model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from latentkv.errors import OptionError, sentence

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Length:
    """Log-normal around `mean` with the deviation `sigma` of the logarithm; always `mean` where sigma is 0."""

    mean: float
    sigma: float = 0.0

    def draw(self, random: random.Random, longest: int) -> int:
        """A length from 1 to `longest`."""
        mu = math.log(self.mean) - self.sigma**2 / 2
        drawn = random.lognormvariate(mu, self.sigma) if self.sigma else self.mean
        return max(1, min(longest, round(drawn)))


# Means: PagedAttention (arXiv:2309.06180), figure 11. It tells no deviations; 1.0 is ours, for a tail of the same kind.
SIGMA = 1.0
LENGTHS = {
    "sharegpt": (Length(161.31, SIGMA), Length(337.99, SIGMA)),
    "alpaca": (Length(19.31, SIGMA), Length(58.45, SIGMA)),
}


def parse_lengths(text: str) -> tuple[Length, Length]:
    """Input and output of "sharegpt", "alpaca", or fixed numbers like "512/64"; OptionError for anything else."""
    if text in LENGTHS:
        return LENGTHS[text]
    numbers = text.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        expected = f"{', '.join(LENGTHS)}, or tokens of input and output such as 512/64"
        raise OptionError(sentence("--lengths", expected=expected, got=repr(text)))
    return Length(int(numbers[0])), Length(int(numbers[1]))


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to be sent; `prompt` is text or token ids."""

    number: int
    prompt: Prompt
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Endless random requests; the same seed gives the same ones.

    vocabulary:    prompts are ids from 0 up to here, all alike likely; not used with `words`
    words:         prompts are runs of these instead, one for each token of the drawn length
    prefix_tokens: so many of the first tokens are the same in `prefix_share` of all prompts
    """

    input: Length
    output: Length
    longest_input: int = 1024
    longest_output: int = 1024
    vocabulary: int = 1000
    words: tuple[str, ...] = ()
    prefix_tokens: int = 0
    prefix_share: float = 1.0
    seed: int = 0

    def requests(self) -> Iterator[Planned]:
        """Requests without end."""
        lengths, content, sharing = (random.Random(f"{self.seed}/{use}") for use in ("lengths", "content", "sharing"))
        shared = self._tokens(content, self.prefix_tokens)
        for number in count():
            tokens = self.input.draw(lengths, self.longest_input)
            output = self.output.draw(lengths, self.longest_output)
            prefix = shared[:tokens] if self.prefix_tokens and sharing.random() < self.prefix_share else []
            yield Planned(number, self._prompt(prefix + self._tokens(content, tokens - len(prefix))), output)

    def _tokens(self, random: random.Random, tokens: int) -> list[int]:
        """Ids, or indices of words that follow each other in the text they are from."""
        if not self.words:
            return [random.randrange(self.vocabulary) for _ in range(tokens)]
        start = random.randrange(len(self.words))
        return [(start + index) % len(self.words) for index in range(tokens)]

    def _prompt(self, tokens: list[int]) -> Prompt:
        return " ".join(self.words[index] for index in tokens) if self.words else tuple(tokens)


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a text file. Raises OptionError when it has none."""
    words = tuple(path.read_text("utf-8", errors="replace").split())
    if not words:
        raise OptionError(sentence("--text", expected="a file of text", got=f"no words in {path}"))
    return words


def read_prompts(path: Path, *, output: Length, longest_output: int, seed: int) -> list[Planned]:
    """Requests of a JSONL file: {"prompt": text or token ids, "max_tokens": drawn from `output` when left out}.

    Raises OptionError that names the line.
    """
    draws = random.Random(f"{seed}/file")
    found: list[Planned] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt = record["prompt"]
            tokens = int(record.get("max_tokens") or output.draw(draws, longest_output))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            got = f"line {number + 1} of {path}: {error!r}"
            raise OptionError(
                sentence("--prompts", expected='JSON objects with a "prompt" in each line', got=got)
            ) from error
        found.append(Planned(len(found), prompt if isinstance(prompt, str) else tuple(prompt), tokens))
    if not found:
        raise OptionError(sentence("--prompts", expected="one prompt or more", got=f"none in {path}"))
    return found


def repeated(requests: Sequence[Planned]) -> Iterator[Planned]:
    """The same requests over and over, each time with numbers of their own."""
    for number in count():
        yield replace(requests[number % len(requests)], number=number)


def poisson_arrivals(rate: float, *, seed: int) -> Iterator[float]:
    """Seconds at which requests arrive, `rate` a second on average, independent of each other."""
    gaps = random.Random(f"{seed}/arrivals")
    at = 0.0
    while True:
        at += gaps.expovariate(rate)
        yield at
