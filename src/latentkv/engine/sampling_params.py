"""How one request's tokens are chosen and when it ends. Plain numbers; knows no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latentkv.errors import OptionError, sentence

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Options of one request; the steps below are applied to the logits in this order.

    min_tokens          no end-of-sequence token, stop token or stop string ends the output before this many tokens
    repetition_penalty  logits of tokens in the prompt or output are divided by it where positive, else multiplied
                        (CTRL, arXiv:1909.05858, section 4.1); 1 = off
    presence_penalty    subtracted from the logits of tokens that are in the output; 0 = off
    frequency_penalty   subtracted once per occurrence in the output; 0 = off
    logit_bias          added to the logits of these token ids, from -100 to 100 each
    temperature         divides the logits; 0 = greedy: the highest logit, the lowest id among equals
    top_k               only the k highest logits; 0 = off
    top_p               of what is left, the fewest most likely tokens that reach this probability; 1 = off
    min_p               of what is left, tokens at least this share as likely as the likeliest; 0 = off

    seed                makes the output repeatable, whatever else runs in the same batch; None = different each time
    stop                strings that end the output; they are not part of the text
    stop_token_ids      tokens that end the output; they are in `token_ids`, not in the text
    ignore_eos          the model's own end-of-sequence tokens do not end the output
    max_tokens          most tokens of output; the model's context may end it earlier
    logprobs            report log-probabilities of the chosen token and this many likeliest ones; None = do not.
                        They are those of the model's own logits, before all the steps above.

    Raises OptionError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    max_tokens: int = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, "0 or more", at_least=0)
        _number("top_p", self.top_p, "above 0, at most 1", above=0, at_most=1)
        _number("min_p", self.min_p, "from 0 to 1", at_least=0, at_most=1)
        _number("repetition_penalty", self.repetition_penalty, "above 0", above=0)
        _number("presence_penalty", self.presence_penalty, "from -2 to 2", at_least=-2, at_most=2)
        _number("frequency_penalty", self.frequency_penalty, "from -2 to 2", at_least=-2, at_most=2)
        _integer("top_k", self.top_k, "0 (off) or more", at_least=0)
        _integer("max_tokens", self.max_tokens, "1 or more", at_least=1)
        _integer("min_tokens", self.min_tokens, "from 0 to max_tokens", at_least=0, at_most=self.max_tokens)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, "None, or 0 or more alternatives", at_least=0)
        if self.seed is not None:
            _integer("seed", self.seed, "None, or from 0 to 2**63 - 1", at_least=0, at_most=2**63 - 1)
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(sentence("ignore_eos", expected="True or False", got=repr(self.ignore_eos)))
        _check_bias(self.logit_bias)
        _check_stops(self.stop, self.stop_token_ids)

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, also when it was given as one string."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _number(
    name: str,
    value: object,
    expected: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(sentence(name, expected=f"a number {expected}", got=repr(value)))
    if not (at_least <= value <= at_most and value > above):
        raise OptionError(sentence(name, expected=expected, got=value))


def _integer(name: str, value: object, expected: str, *, at_least: int, at_most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(sentence(name, expected=f"a whole number, {expected}", got=repr(value)))
    if not at_least <= value <= at_most:
        raise OptionError(sentence(name, expected=expected, got=value))


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise OptionError(sentence("logit_bias", expected="token ids with a number each", got=repr(bias)))
    for token_id, value in bias.items():
        _integer("logit_bias", token_id, "0 or more each", at_least=0)
        _number("logit_bias", value, "from -100 to 100 each", at_least=-100, at_most=100)


def _check_stops(stop: object, stop_token_ids: object) -> None:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) and text for text in strings):
        raise OptionError(sentence("stop", expected="a string or strings, none of them empty", got=repr(stop)))
    if not isinstance(stop_token_ids, Sequence) or isinstance(stop_token_ids, str | bytes):
        raise OptionError(sentence("stop_token_ids", expected="token ids", got=repr(stop_token_ids)))
    for token_id in stop_token_ids:
        _integer("stop_token_ids", token_id, "0 or more each", at_least=0)
