"""`latentkv claims`: the public numbers about MLA, each computed again from configurations."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from latentkv.errors import OptionError, sentence

if TYPE_CHECKING:
    from latentkv.planner.claims.ledger import Recomputed


@click.command(short_help="Public numbers about MLA, recomputed.")
@click.argument("id", required=False)
@click.option(
    "--what-if",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Compute the claim under another condition, such as bits=8; may be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def claims(*, id: str | None, changes: tuple[str, ...], as_json: bool) -> None:
    """List the public claims about MLA with what they come to, or tell everything about the claim ID.

    Verdicts: OK reproduces; COND reproduces only under the stated conditions; WRONG does not reproduce; NOSRC has no
    primary source. Nothing is stored as a result: each number is computed from configurations when it is shown.
    """
    from latentkv.planner.claims import ledger

    if id is None and changes:
        raise OptionError(sentence("--what-if", expected="the id of one claim before it", got="none"))
    chosen = (ledger.find_claim(id),) if id is not None else ledger.claims()
    done = [ledger.recompute(claim, _changes(changes)) for claim in chosen]
    if as_json:
        records = [record(each) for each in done]
        click.echo(json.dumps(records if id is None else records[0], indent=2, ensure_ascii=False))
    elif id is not None:
        click.echo(_one(done[0]), nl=False)
    else:
        click.echo(_all(done), nl=False)


def record(done: Recomputed) -> dict[str, object]:
    """A claim and its results as JSON-ready values."""
    return {
        **asdict(done.claim),
        "computed_under": dict(done.conditions),
        "results": [asdict(result) for result in done.results],
        "quoted_figures_met": done.met,
    }


def _changes(changes: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise OptionError(sentence("--what-if", expected="NAME=VALUE, such as bits=8", got=repr(change)))
        found[name.strip()] = value.strip()
    return found


def _all(done: list[Recomputed]) -> str:
    from latentkv.cli.text_table import bullets, table
    from latentkv.planner.claims import ledger

    parts = []
    for letter, title in ledger.sections().items():
        rows = [_row(each) for each in done if each.claim.section == letter]
        parts.append(f"{letter}. {title}\n" + table(("id", "verdict", "comes to", "claim"), rows, left=4))
    meanings = [f"{verdict}: {meaning}" for verdict, meaning in ledger.VERDICTS.items()]
    return "".join(parts) + bullets([*meanings, "`latentkv claims ID` tells conditions, sums and sources."])


def _row(done: Recomputed) -> tuple[str, ...]:
    claim, headline = done.claim, done.headline
    return (claim.id, claim.verdict, told(headline.value, headline.unit) if headline else "", claim.claim)


def told(value: float, unit: str) -> str:
    """ "93.34 %", "20,011 tokens", "5.763x"."""
    number = f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"
    return number + unit if unit == "x" else f"{number} {unit}"


def _one(done: Recomputed) -> str:
    from latentkv.cli.text_table import facts, table
    from latentkv.planner.claims import ledger

    claim, places = done.claim, ledger.places()
    pairs = [
        ("claim", claim.claim),
        ("quoted in", "; ".join(places[place] for place in claim.quoted_in)),
        ("verdict", f"{claim.verdict}: {ledger.VERDICTS[claim.verdict]}"),
        ("why", claim.reason),
        ("source", claim.source or "none"),
    ]
    pairs += [("formula", claim.formula)] if claim.formula else []
    pairs += [("conditions", ", ".join(_conditions(done)))] if done.conditions else []
    text = f"{claim.id}\n" + facts(pairs)
    if not done.results:
        return text
    rows = [
        (each.name, told(each.value, each.unit), _quoted(done, each.name, each.value), each.sum)
        for each in done.results
    ]
    return text + table(("result", "comes to", "quoted", "sum"), rows, left=1)


def _conditions(done: Recomputed) -> list[str]:
    told_conditions = []
    for name, value in done.conditions.items():
        shown = value if isinstance(value, str) else f"{value:,.12g}"
        before = done.claim.conditions[name]
        told_conditions.append(f"{name}={shown}" + ("" if before == value else f" (claimed: {before})"))
    return told_conditions


def _quoted(done: Recomputed, name: str, value: float) -> str:
    figure = done.claim.quoted.get(name)
    if figure is None:
        return ""
    return f"{figure.value:,.6g} ({'met' if figure.met_by(value) else 'not met'})"
