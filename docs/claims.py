"""The page of claims, made from the ledger: every result on it is computed when the page is."""

from __future__ import annotations

from latentkv.cli.claims import told
from latentkv.planner.claims import ledger


def claims() -> str:
    """The page, as Markdown."""
    lines = [
        "# Public numbers about MLA, recomputed",
        "",
        "Made by `make docs` from `latentkv.planner.claims`: every result below is computed from configurations of the",
        "catalogue; only what others said is quoted. `latentkv claims ID` shows a claim with conditions and sums,",
        "`latentkv claims A1 --what-if bits=8` changes a condition.",
        "",
        *[f"- **{verdict}**: {meaning}" for verdict, meaning in ledger.VERDICTS.items()],
        "",
        "Quoted in: " + "; ".join(f"{number} {place}" for number, place in ledger.places().items()) + ".",
    ]
    for letter, title in ledger.sections().items():
        lines += ["", f"## {letter}. {title}", ""]
        for claim in ledger.claims():
            lines += _entry(claim) if claim.section == letter else []
    return "\n".join(lines) + "\n"


def _entry(claim: ledger.Claim) -> list[str]:
    done = ledger.recompute(claim)
    lines = [f"**{claim.id}** ({', '.join(claim.quoted_in)}) *{claim.claim}.* **{claim.verdict}**: {claim.reason}"]
    lines += [f"Source: {claim.source}."] if claim.source else []
    if done.results:
        lines += ["", "| result | comes to | sum |", "|---|---|---|"]
        lines += [f"| {each.name} | {told(each.value, each.unit)} | {each.sum} |" for each in done.results]
    return [*lines, ""]
