"""What storing a cache more compactly costs a model on a text: one row of numbers per cache format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from latentkv.cache.layout import Format
from latentkv.errors import OptionError, sentence
from latentkv.evaluate.needle import find, make_needles
from latentkv.evaluate.prediction import Prediction, predict, windows
from latentkv.evaluate.runs import Runs
from latentkv.evaluate.variants import measured_format
from latentkv.models.model import Model

REFERENCE = "bf16"
DEFAULT_FORMATS = ("bf16", "f32", "fp8", "int8", "int6", "int4")


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    formats:       names, public or of evaluate/variants.py; "bf16", the reference, is always measured
    tokens:        of the text, from its beginning
    window_tokens: tokens of a window, at most the model's context
    needles:       numbers to be found; 0 leaves retrieval out
    needle_tokens: length of the text each is hidden in
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    tokens: int = 20_000
    window_tokens: int = 2048
    needles: int = 12
    needle_tokens: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("window_tokens", 2), ("needles", 0), ("needle_tokens", 64)):
            if getattr(self, name) < least:
                raise OptionError(sentence(name, expected=f"{least} or more", got=getattr(self, name)))

    @property
    def all_formats(self) -> tuple[Format, ...]:
        """The formats themselves, the reference first, each once. Raises OptionError for an unknown name."""
        return tuple(measured_format(name) for name in dict.fromkeys((REFERENCE, *self.formats)))


@dataclass(frozen=True, slots=True)
class FormatQuality:
    """One format's results so far.

    needles_found, needles: of how many numbers how many were repeated
    """

    format: str
    bytes_per_token: int
    prediction: Prediction = field(default_factory=Prediction)
    needles_found: int = 0
    needles: int = 0


class CacheQuality:
    """A measurement; `rows` holds what is finished at any moment, so that an interrupted one keeps whole windows.

    Raises OptionError for a text of fewer than two tokens or an unknown format.
    """

    def __init__(self, model: Model, tokenizer: Encoder, text: str, options: Options) -> None:
        formats = options.all_formats
        self.options = options
        window_tokens = min(options.window_tokens, model.max_position_embeddings)
        token_ids = tokenizer.encode(text, special_tokens=False)
        self._windows = windows(token_ids[: options.tokens], tokens=window_tokens)
        if not self._windows:
            raise OptionError(sentence("text", expected="at least two tokens", got=len(token_ids)))
        self._needles = make_needles(
            lambda piece: tokenizer.encode(piece, special_tokens=False),
            token_ids,
            count=options.needles,
            tokens=min(options.needle_tokens, model.max_position_embeddings),
        )
        longest = max(len(ids) for ids in (*self._windows, *(needle.token_ids for needle in self._needles)))
        self._runs = Runs(model, formats, tokens=longest)
        self.rows = {name: FormatQuality(name, self._runs.bytes_per_token(name)) for name in self._runs.names}

    @property
    def total_tokens(self) -> int:
        """Tokens to compute, all formats together."""
        tokens = sum(map(len, self._windows)) + sum(len(needle.token_ids) - 1 for needle in self._needles)
        return tokens * len(self.rows)

    def run(self, progress: Callable[[int, int], None] | None = None) -> Sequence[FormatQuality]:
        """Measure everything; returns the rows. progress: called with (tokens computed, tokens in all)."""
        done = 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, self.total_tokens)

        for window in self._windows:
            for name, prediction in predict(self._runs, window, reference=REFERENCE, advance=advance).items():
                self._update(name, prediction=prediction)
        for needle in self._needles:
            for name, found in find(self._runs, needle, advance=advance).items():
                self._update(name, found=found)
        return tuple(self.rows.values())

    def _update(self, name: str, *, prediction: Prediction | None = None, found: bool | None = None) -> None:
        row = self.rows[name]
        self.rows[name] = FormatQuality(
            row.format,
            row.bytes_per_token,
            row.prediction + (prediction or Prediction()),
            row.needles_found + bool(found),
            row.needles + (found is not None),
        )


def as_records(rows: Sequence[FormatQuality]) -> list[dict[str, object]]:
    """JSON-ready rows; divergences in nats, None where nothing was measured."""
    return [
        {
            "format": row.format,
            "bytes_per_token": row.bytes_per_token,
            "tokens": row.prediction.tokens,
            "perplexity": _number(row.prediction.perplexity),
            "kl": _number(row.prediction.mean_divergence),
            "kl_error": _number(row.prediction.divergence_error),
            "top1_agreement": _number(row.prediction.agreement),
            "needles_found": row.needles_found,
            "needles": row.needles,
        }
        for row in rows
    ]


def _number(value: float) -> float | None:
    return None if value != value else value
