"""`latentkv claims`: the list, one claim, JSON, changed conditions and bad input."""

from __future__ import annotations

import json

from support.command_line import Run, assert_one_sentence


def test_the_list_has_every_claim_and_verdict(run: Run) -> None:
    result = run("claims")
    assert result.exit_code == 0
    for expected in ("A1 ", "93.34 %", "5.763x", "15.01x", "F5 ", "NOSRC", "A. The headline figures"):
        assert expected in result.stdout


def test_one_claim_tells_conditions_sums_and_source(run: Run) -> None:
    text = run("claims", "A1", "--what-if", "bits=8").stdout
    for expected in ("bits=8 (claimed: 6)", "91.12 %", "(not met)", "arXiv:2405.04434", "34,560 / 389,120"):
        assert expected in text


def test_json_is_a_list_or_one_object(run: Run) -> None:
    everything = json.loads(run("claims", "--json").stdout)
    assert len(everything) == 55
    one = json.loads(run("claims", "C4", "--json").stdout)
    assert one["quoted_figures_met"] is False
    assert one["results"][0]["unit"] == "tokens"


def test_bad_input_is_one_sentence(run: Run) -> None:
    for arguments, words in (
        (("claims", "Z9"), "claim"),
        (("claims", "--what-if", "bits=8"), "the id of one claim"),
        (("claims", "A1", "--what-if", "bits"), "NAME=VALUE"),
        (("claims", "A1", "--what-if", "colour=8"), "one of model"),
    ):
        assert_one_sentence(run(*arguments), words)
