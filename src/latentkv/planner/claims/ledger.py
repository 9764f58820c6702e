"""The ledger: every claim with its conditions, and its arithmetic done again from the catalogue.

A claim is a record of data/claims.json and, where there is arithmetic, one small function of the modules beside this
one, found by the claim's id. The record says what was quoted; what it comes to is computed, never stored.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, Literal

from latentkv.errors import OptionError, sentence
from latentkv.planner.claims.arithmetic import Calculation, Condition, Conditions, Result
from latentkv.planner.claims.article import CALCULATIONS as ARTICLE
from latentkv.planner.claims.comparison_table import CALCULATIONS as COMPARISON_TABLE
from latentkv.planner.claims.critique import CALCULATIONS as CRITIQUE
from latentkv.planner.claims.headline import CALCULATIONS as HEADLINE
from latentkv.planner.claims.serving import CALCULATIONS as SERVING
from latentkv.planner.claims.training import CALCULATIONS as TRAINING

CLAIMS_FILE = Path(__file__).parent.parent / "data" / "claims.json"
Verdict = Literal["OK", "COND", "WRONG", "NOSRC"]
VERDICTS: Mapping[str, str] = {
    "OK": "reproduces",
    "COND": "reproduces only under the stated conditions",
    "WRONG": "does not reproduce",
    "NOSRC": "no primary source found",
}
CALCULATIONS: Mapping[str, Calculation] = {
    **HEADLINE,
    **TRAINING,
    **SERVING,
    **ARTICLE,
    **COMPARISON_TABLE,
    **CRITIQUE,
}


@dataclass(frozen=True, slots=True)
class Quoted:
    """A figure as it was said. It is met by a result within `within`, half of its last digit unless said loosely."""

    value: float
    within: float

    def met_by(self, result: float) -> bool:
        """Whether the result is the quoted figure."""
        return abs(result - self.value) <= self.within


@dataclass(frozen=True, slots=True)
class Claim:
    """One public statement.

    conditions: what its arithmetic depends on, with the values under which it is judged
    quoted:     figures as they were said, by the name of the result that they should be
    reason:     why the verdict, in words; formula: the arithmetic in words; source: the primary source
    """

    id: str
    section: str
    quoted_in: tuple[str, ...]
    claim: str
    verdict: Verdict
    reason: str
    source: str
    formula: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    quoted: Mapping[str, Quoted] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A claim, the conditions it was computed under, and what it comes to.

    met: whether every quoted figure is met; None where no figure was quoted or there is no arithmetic
    """

    claim: Claim
    conditions: Mapping[str, Condition]
    results: tuple[Result, ...]
    met: bool | None

    @property
    def headline(self) -> Result | None:
        """The result that the claim is about: the first that it quotes, else the first; None without arithmetic."""
        quoted = (result for result in self.results if result.name in self.claim.quoted)
        return next(quoted, self.results[0] if self.results else None)

    def result(self, name: str) -> float:
        """The value of the result called `name`; KeyError if there is none."""
        return {result.name: result.value for result in self.results}[name]


def claims() -> tuple[Claim, ...]:
    """The whole ledger, in order."""
    return tuple(_ledger()["claims"].values())


def sections() -> Mapping[str, str]:
    """What each section of the ledger is about, by its letter."""
    return dict(_ledger()["sections"])


def places() -> Mapping[str, str]:
    """What is behind each number under "quoted in"."""
    return dict(_ledger()["places"])


def find_claim(id: str) -> Claim:
    """The claim with this id, in any case. Raises OptionError with the nearest ids."""
    found: Mapping[str, Claim] = _ledger()["claims"]
    by_id = {known.casefold(): claim for known, claim in found.items()}
    if id.casefold() in by_id:
        return by_id[id.casefold()]
    near = get_close_matches(id.casefold(), by_id, n=3, cutoff=0.4)
    remedy = f"Did you mean {' or '.join(by_id[each].id for each in near)}?" if near else ""
    expected = f"one of {', '.join(found)}" if not near else "the id of a claim"
    raise OptionError(sentence("claim", expected=expected, got=repr(id), remedy=remedy))


def recompute(claim: Claim, what_if: Mapping[str, str] | None = None) -> Recomputed:
    """Do the claim's arithmetic again, under its own conditions but for those in `what_if`.

    Raises OptionError for a condition that the claim does not have, or a value that it cannot take.
    """
    conditions = {**claim.conditions, **{name: _value(claim, name, text) for name, text in (what_if or {}).items()}}
    calculate = CALCULATIONS.get(claim.id)
    results = calculate(Conditions(conditions)) if calculate is not None else ()
    values = {result.name: result.value for result in results}
    met = all(figure.met_by(values[name]) for name, figure in claim.quoted.items()) if claim.quoted else None
    return Recomputed(claim, conditions, results, met)


def _value(claim: Claim, name: str, text: str) -> Condition:
    if name not in claim.conditions:
        expected = (
            f"one of {', '.join(claim.conditions)}" if claim.conditions else "none (it has no arithmetic to vary)"
        )
        raise OptionError(sentence(f"condition of claim {claim.id}", expected=expected, got=repr(name)))
    if isinstance(claim.conditions[name], str):
        return text
    try:
        value = float(text.replace(",", "").replace("_", ""))
    except ValueError as error:
        raise OptionError(sentence(f"condition {name}", expected="a number", got=repr(text))) from error
    if not 0 < value < inf:
        raise OptionError(sentence(f"condition {name}", expected="a finite number above zero", got=repr(text)))
    return value


@functools.cache
def _ledger() -> Mapping[str, Any]:
    data = json.loads(CLAIMS_FILE.read_text("utf-8"))
    return {**data, "claims": {record["id"]: _claim(record) for record in data["claims"]}}


def _claim(record: Mapping[str, Any]) -> Claim:
    quoted = {name: Quoted(value, within) for name, (value, within) in record.get("quoted", {}).items()}
    return Claim(**{**record, "quoted_in": tuple(record["quoted_in"]), "quoted": quoted})
