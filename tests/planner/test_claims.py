"""The ledger of claims: all recomputed, and compared with the figures of a ledger made by hand beforehand."""

from __future__ import annotations

import pytest

from latentkv.errors import LatentKVError, OptionError
from latentkv.planner.claims.ledger import CALCULATIONS, VERDICTS, claims, find_claim, places, recompute, sections

# What a ledger made by hand, from the papers and not from this code, came to.
BY_HAND = {
    ("A1", "reduction"): (93.339, 0.001),
    ("A1", "reduction at equal precision"): (82.2, 0.05),
    ("A2", "gain"): (5.763, 0.001),
    ("A3", "ratio"): (15.01, 0.01),
    ("A3", "ratio at equal precision"): (5.63, 0.005),
    ("A6", "cached per token"): (34_560, 0),
    ("B1", "GPU hours"): (2.788, 0.0005),
    ("B1", "cost"): (5.576, 0.0005),
    ("B3", "hours saved"): (42.5, 0.05),
    ("C1b", "of the bandwidth"): (89.6, 0.05),
    ("C1b", "of the arithmetic"): (58.6, 0.05),
    ("C1b", "of the throttled arithmetic"): (67.1, 0.05),
    ("C2", "intensity"): (241.8, 0.05),
    ("C2", "ridge"): (295, 0.5),
    ("C2", "ridge when throttled"): (258, 0.5),
    ("C3b", "from the shapes, keys and values padded"): (10.67, 0.005),
    ("C3b", "as the engine counted"): (9.38, 0.005),
    ("C3b", "from the shapes, keys and values 128 wide"): (7.1, 0.05),
    ("C3b", "without tensor parallelism, padded"): (85.3, 0.05),
    ("C4", "MHA"): (20_012, 1),
    ("C4", "MHA, keys with their RoPE part"): (16_009, 1),
    ("C4", "MLA"): (1_138_433, 1),
    ("C4", "MHA as posted: hidden size for the heads"): (45_741, 1),
    ("C4", "MLA as posted: latent twice, no RoPE key"): (640_369, 1),
    ("C5", "GQA groups"): (2.25, 0),
    ("D1", "cached per token"): (1.96608, 0),
    ("D1", "one sequence, GB"): (128.85, 0.005),
    ("D1", "one sequence, GiB"): (120.0, 0.005),
    ("D2", "ratio"): (56.9, 0.05),
    ("D2", "ratio, keys with their RoPE part"): (71.1, 0.05),
    ("D2", "ratio of the paper's large pair"): (24.9, 0.05),
    ("D2", "ratio of the paper's small pair"): (7.1, 0.05),
    ("D3", "ratio"): (28.4, 0.05),
    ("D4", "one sequence, GB"): (2.265, 0.0005),
    ("D4", "one sequence, GiB"): (2.109, 0.0005),
    ("D4", "the other model's, GB"): (2.303, 0.0005),
    ("D5", "ratio"): (8, 0),
    ("D5b", "ratio of the ratios"): (7.1, 0.05),
    ("D6", "times MQA's cache"): (2.25, 0),
    ("D7", "against Llama-2-13B"): (3.2, 0),
    ("E0", "KV heads"): (8, 0),
    ("E1", "bytes per layer"): (4, 0),
    ("E1b", "bytes per layer"): (1.152, 0),
    ("E1b", "as stored rows"): (0.656, 0),
    ("E2", "per layer"): (3.56, 0.005),
    ("E2", "per model"): (5.63, 0.005),
    ("E3", "one sequence"): (12.75, 0.005),
    ("E3", "as MHA"): (102, 0.05),
    ("E4", "from the text"): (8_681, 1),
    ("E4d", "gain of the table's cells"): (14.3, 0.05),
    ("E6", "ratio"): (3.56, 0.005),
    ("E6", "one sequence"): (8.05, 0.005),
    ("F1", "of a head's key"): (33.3, 0.05),
    ("F1", "of the cached row"): (11.1, 0.05),
    ("F2b", "latent over head form"): (3.4, 0),
    ("F2b", "latent over plain heads of 128 + 128"): (4.25, 0),
    ("F2b", "latent form"): (139_264, 0),
    ("F2b", "head form, expanded already"): (40_960, 0),
    ("F2b", "expansion, if done each step"): (16_777_216, 0),
}


def test_the_ledger_is_whole() -> None:
    ledger = claims()
    assert len({claim.id for claim in ledger}) == len(ledger) == 55
    assert set(CALCULATIONS) == {claim.id for claim in ledger if claim.formula}
    for claim in ledger:
        assert claim.verdict in VERDICTS
        assert claim.section in sections()
        assert claim.reason
        assert set(claim.quoted_in) <= set(places())
        assert bool(claim.conditions) == bool(claim.formula)


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_the_verdict_is_what_the_arithmetic_says(claim) -> None:
    """Where a figure was quoted, the claim holds exactly when its verdict says so."""
    done = recompute(claim)
    assert bool(done.results) == bool(claim.formula)
    if claim.quoted:
        assert done.met == (claim.verdict in ("OK", "COND"))


@pytest.mark.parametrize(("key", "expected"), BY_HAND.items(), ids=lambda value: ": ".join(map(str, value)))
def test_results_are_those_worked_out_by_hand(key: tuple[str, str], expected: tuple[float, float]) -> None:
    figure, within = expected
    assert recompute(find_claim(key[0])).result(key[1]) == pytest.approx(figure, abs=within + 1e-9)


def test_a_condition_can_be_changed() -> None:
    claim = find_claim("a1")
    eight = recompute(claim, {"bits": "8"})
    assert eight.result("reduction") == pytest.approx(91.1, abs=0.05)
    assert eight.met is False
    assert recompute(claim, {"bits": "16"}).result("ratio") == recompute(claim).result("ratio at equal precision")
    sixteen = recompute(find_claim("E6"), {"groups": "16"})
    assert (sixteen.result("ratio"), sixteen.result("one sequence")) == pytest.approx((7.11, 16.1), abs=0.01)
    assert recompute(find_claim("C2"), {"heads": "16"}).result("intensity") == pytest.approx(30.2, abs=0.05)


@pytest.mark.parametrize(
    ("id", "changes", "words"),
    [
        ("A1", {"bit": "8"}, "one of model, baseline, bits"),
        ("A1", {"bits": "eight"}, "expected a number"),
        ("A1", {"bits": "0"}, "above zero"),
        ("A1", {"bits": "nan"}, "above zero"),
        ("A1", {"format": "int7"}, "format"),
        ("A1", {"model": "DeepSeek-V9"}, "DeepSeek-V"),
        ("C2", {"model": "meta-llama/Llama-2-70b-hf"}, "one with MLA"),
        ("D5", {"model": "deepseek-ai/DeepSeek-V2"}, "got MLA"),
        ("E6", {"groups": "7"}, "a divisor of 128"),
        ("A5", {"bits": "8"}, "no arithmetic"),
    ],
)
def test_impossible_conditions_are_refused_in_words(id: str, changes: dict[str, str], words: str) -> None:
    with pytest.raises(LatentKVError, match=words):
        recompute(find_claim(id), changes)


def test_an_unknown_id_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="A1"):
        find_claim("A11")
