"""Percentiles, throughput and goodput of records whose answers are known."""

from __future__ import annotations

import math

import pytest

from latentkv.bench.load.records import Record
from latentkv.bench.load.summary import Objective, parse_objective, percentile, summarise
from latentkv.errors import OptionError


def record(
    number: int, *, due: float, pieces: list[float], tokens: int | None = None, error: str | None = None
) -> Record:
    return Record(
        number,
        due,
        done=pieces[-1] if pieces else due,
        pieces=pieces,
        prompt_tokens=10,
        output_tokens=tokens if tokens is not None else len(pieces),
        error=error,
    )


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 90) == pytest.approx(4.6)
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_a_summary_counts_what_was_answered() -> None:
    records = [
        record(0, due=0.0, pieces=[1.0, 1.5, 2.5]),
        record(1, due=1.0, pieces=[1.25, 1.5], tokens=3),
        record(2, due=1.0, pieces=[], error="status 429"),
        record(3, due=1.0, pieces=[3.0], error="cut off"),
    ]
    found = summarise(records, begin=0.0, end=4.0, objective=Objective(ttft=0.5))
    assert (found["requests"], found["completed"]) == (4, 2)
    assert found["errors"] == {"cut off": 1, "status 429": 1}
    assert found["requests_per_s"] == 0.5
    assert found["output_tokens"] == 6
    assert found["output_tokens_per_s"] == 1.5
    assert found["total_tokens_per_s"] == 6.5
    assert found["ttft_ms"]["p50"] == 625.0
    assert found["itl_ms"] == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "mean": pytest.approx(583.333)}
    # Three tokens in two pieces: (1.5 - 1.25) / 2.
    assert found["tpot_ms"]["p50"] == pytest.approx((750 + 125) / 2)
    assert found["goodput_per_s"] == 0.25
    assert found["good_share"] == 0.25


def test_prompts_that_were_not_counted_leave_the_total_open() -> None:
    one = record(0, due=0.0, pieces=[1.0])
    one.prompt_tokens = None
    found = summarise([one], begin=0.0, end=1.0, objective=None)
    assert found["total_tokens_per_s"] is None
    assert found["goodput_per_s"] is None


def test_nothing_answered_has_no_latency() -> None:
    found = summarise([], begin=0.0, end=1.0, objective=Objective())
    assert found["ttft_ms"]["p99"] is None
    assert found["output_tokens_per_s"] == 0


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        (Objective(ttft=1.0, itl=0.75, e2e=2.5), True),
        (Objective(ttft=0.99), False),
        (Objective(itl=0.74), False),
        (Objective(e2e=2.49), False),
        (Objective(), True),
    ],
)
def test_an_answer_is_good_within_every_limit(limits: Objective, good: bool) -> None:
    assert limits.met_by(record(0, due=0.0, pieces=[1.0, 1.5, 2.5])) is good


def test_limits_are_read_with_their_units() -> None:
    assert parse_objective("ttft=500ms, itl=0.1s") == Objective(ttft=0.5, itl=0.1, e2e=math.inf)
    for text in ("ttft=500", "ttft=1s,ttft=2s", "speed=1s", ""):
        with pytest.raises(OptionError, match="--slo"):
            parse_objective(text)
