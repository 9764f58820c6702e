"""Arithmetic over records: throughput, percentiles, errors by kind, goodput. Knows neither HTTP nor clocks."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentkv.bench.load.records import Record
from latentkv.errors import OptionError, sentence

PERCENTILES = (50, 90, 99)
_LIMIT = re.compile(r"(ttft|itl|e2e)=(\d+(?:\.\d+)?)(ms|s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a request must not exceed to count for goodput, in seconds; `itl` is its mean time of a token."""

    ttft: float = math.inf
    itl: float = math.inf
    e2e: float = math.inf

    def met_by(self, record: Record) -> bool:
        """Whether an answer without error stays within all limits."""
        per_token = record.per_token or 0.0
        return record.ttft <= self.ttft and per_token <= self.itl and record.e2e <= self.e2e


def parse_objective(text: str) -> Objective:
    """From "ttft=500ms,itl=100ms,e2e=10s", each at most once. Raises OptionError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        found = _LIMIT.fullmatch(part.strip())
        if found is None or found[1] in limits:
            expected = "limits with units such as ttft=500ms,itl=100ms,e2e=10s"
            raise OptionError(sentence("--slo", expected=expected, got=repr(text)))
        limits[found[1]] = float(found[2]) / (1000 if found[3] == "ms" else 1)
    return Objective(**limits)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Between the two values around rank `percent` of the sorted ones, linearly; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(records: Sequence[Record], *, begin: float, end: float, objective: Objective | None) -> dict[str, Any]:
    """JSON-ready values of requests sent and answered between `begin` and `end`; rates are per second.

    Latencies are in milliseconds and of answers without error: ttft_ms to the first piece, itl_ms between any two
    pieces of one answer, tpot_ms the mean per token of an answer after its first, e2e_ms to the end.
    """
    whole = [record for record in records if record.error is None]
    seconds = max(end - begin, 1e-9)
    output = sum(record.tokens for record in whole)
    prompts = [record.prompt_tokens for record in whole]
    counted = sum(tokens for tokens in prompts if tokens is not None) if None not in prompts else None
    good = sum(objective.met_by(record) for record in whole) if objective is not None else None
    return {
        "seconds": round(seconds, 3),
        "requests": len(records),
        "completed": len(whole),
        "errors": dict(sorted(Counter(record.error for record in records if record.error is not None).items())),
        "requests_per_s": round(len(whole) / seconds, 4),
        "output_tokens": output,
        "output_tokens_per_s": round(output / seconds, 3),
        "prompt_tokens": counted,
        "total_tokens_per_s": round((output + counted) / seconds, 3) if counted is not None else None,
        "ttft_ms": _spread([record.ttft for record in whole]),
        "itl_ms": _spread([gap for record in whole for gap in record.gaps]),
        "tpot_ms": _spread([record.per_token for record in whole if record.per_token is not None]),
        "e2e_ms": _spread([record.e2e for record in whole]),
        "goodput_per_s": round(good / seconds, 4) if good is not None else None,
        "good_share": round(good / len(records), 4) if good is not None and records else None,
    }


def _spread(seconds: Sequence[float]) -> dict[str, float | None]:
    found = {f"p{percent}": percentile(seconds, percent) for percent in PERCENTILES}
    found["mean"] = sum(seconds) / len(seconds) if seconds else None
    return {name: None if value is None else round(value * 1e3, 3) for name, value in found.items()}
