"""Quality of cache formats on a random model: sums against formulas, and what has to hold whatever the numbers are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from latentkv.errors import OptionError
from latentkv.evaluate import cache_quality, prediction
from latentkv.evaluate.cache_quality import CacheQuality, Options, as_records
from latentkv.evaluate.needle import find, make_needles
from latentkv.evaluate.plot import check_plot, draw_quality
from latentkv.evaluate.prediction import Prediction, predict, windows
from latentkv.evaluate.runs import Runs
from latentkv.evaluate.variants import VARIANTS, measured_format
from latentkv.models.load import load_model
from latentkv.models.model import Model
from support.compare import assert_close
from support.tiny_models import FAMILIES, VOCAB, save_model

TEXT = "".join(chr(65 + i * i % 26) for i in range(400))


class Letters:
    """One token per character."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        return [ord(character) % VOCAB for character in text]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save_model(next(family for family in FAMILIES if family.name == "minicpm3"), folder)
    return load_model(folder, dtype="float32").model


def options(**changes: object) -> Options:
    return Options(**{"tokens": 90, "window_tokens": 40, "needles": 2, "needle_tokens": 64} | changes)


def test_every_measure_against_its_formula(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "CHUNK_TOKENS", 16)
    names = ("bf16", "int4")
    window = torch.tensor(Letters().encode(TEXT)[:41])
    whole = Runs(model, [measured_format(name) for name in names], tokens=41)
    logs = {name: whole.log_probs(name, window, start=0, rows=torch.arange(40)).double() for name in names}
    cut = predict(Runs(model, [measured_format(name) for name in names], tokens=41), window, reference="bf16")
    for name in names:
        got, p, q = cut[name], logs["bf16"], logs[name]
        surprise = -q[torch.arange(40), window[1:]]
        kl = (p.exp() * (p - q)).sum(dim=1)
        assert got.tokens == 40
        assert_close(torch.tensor(got.perplexity).float(), surprise.mean().exp(), tolerance="logits")
        # float32's rounding may move a number over the boundary between two codes of four bits.
        assert abs(got.mean_divergence - kl.mean().item()) <= 0.05 * kl.mean().item()
        assert abs(got.agreement - (p.argmax(1) == q.argmax(1)).double().mean().item()) <= 1 / 40
    assert cut["bf16"].divergence == 0
    assert cut["bf16"].agreement == 1
    assert cut["int4"].divergence > 0


def test_sums_add_up_and_nothing_is_not_a_number() -> None:
    some = Prediction(4, 2.0, 1.0, 0.5, 3)
    both = some + Prediction(4, 2.0, 0.0, 0.0, 1)
    assert (both.tokens, both.perplexity, both.mean_divergence, both.agreement) == (8, math.exp(0.5), 0.125, 0.5)
    assert both.divergence_error == pytest.approx(math.sqrt((0.5 / 8 - 0.125**2) / 7))
    assert math.isnan(Prediction().perplexity)
    assert math.isnan(Prediction().divergence_error)


def test_windows_do_not_overlap_and_a_rest_of_one_is_left_out() -> None:
    assert [piece.tolist() for piece in windows(range(7), tokens=3)] == [[0, 1, 2], [3, 4, 5]]
    assert [len(piece) for piece in windows(range(8), tokens=3)] == [3, 3, 2]


def test_needles_are_where_they_should_be() -> None:
    haystack = Letters().encode(TEXT)
    needles = make_needles(Letters().encode, haystack, count=5, tokens=150)
    depths: list[int] = []
    for needle in needles:
        text = "".join(chr(token) for token in needle.token_ids.tolist())
        answer = text[-needle.answer_tokens :]
        assert len(needle.token_ids) == 150
        assert text.count(f" is{answer}") == 2
        assert text.endswith(f"\nThe secret number of {cache_place(text)} is{answer}")
        depths.append(text.index("\nThe secret"))
    room = 150 - len("\nThe secret number of Oslo is") * 2 - 14
    assert all(abs(depth - room * (2 * index + 1) / 10) <= 5 for index, depth in enumerate(depths))
    assert len({tuple(needle.token_ids.tolist()) for needle in needles}) == 5


def cache_place(text: str) -> str:
    return text.split("number of ")[1].split(" is")[0]


def test_a_needle_is_found_when_every_token_of_it_is_the_likeliest(model: Model) -> None:
    [needle] = make_needles(Letters().encode, Letters().encode(TEXT), count=1, tokens=80)
    runs = Runs(model, [measured_format("f32")], tokens=80)
    ids = needle.token_ids
    rows = torch.arange(79 - needle.answer_tokens, 79)
    likeliest = runs.log_probs("f32", ids[:-1], start=0, rows=rows).argmax(dim=1)
    assert find(runs, needle) == {"f32": torch.equal(likeliest, ids[-needle.answer_tokens :])}


def test_every_format_and_variant_runs_and_is_counted(model: Model) -> None:
    names = (*Options().formats, *VARIANTS)
    quality = CacheQuality(model, Letters(), TEXT, options(formats=names, needles=1))
    seen: list[tuple[int, int]] = []
    rows = quality.run(lambda done, total: seen.append((done, total)))
    assert {row.format for row in rows} == {*names}
    assert all(row.prediction.tokens == 87 and row.needles == 1 for row in rows)
    assert seen[-1] == (quality.total_tokens, quality.total_tokens)
    records = json.loads(json.dumps(as_records(rows)))
    assert records[0]["format"] == "bf16"
    assert records[0]["kl"] == 0
    assert all(record["perplexity"] > 1 for record in records)


def test_finer_codes_err_less(model: Model) -> None:
    quality = CacheQuality(model, Letters(), TEXT, options(tokens=400, window_tokens=200, needles=0))
    error = {row.format: row.prediction.mean_divergence for row in quality.run()}
    assert error["f32"] < error["int8"] < error["int6"] < error["int4"]
    assert error["fp8"] < error["int4"]


def test_an_interruption_keeps_the_windows_that_were_finished(model: Model) -> None:
    quality = CacheQuality(model, Letters(), TEXT, options(formats=("int8",), needles=0))

    def interrupt(done: int, total: int) -> None:
        if done > 2 * 40 + 2 * 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quality.run(interrupt)
    assert [row.prediction.tokens for row in quality.rows.values()] == [39, 39]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"formats": ("int5",)}, "cache format: expected one of f32, .*int4-unrotated.*, got 'int5'"),
        ({"tokens": 1}, "tokens: expected 2 or more, got 1"),
        ({"needle_tokens": 10}, "needle_tokens: expected 64 or more"),
        ({"needles": -1}, "needles: expected 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(model: Model, changes: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        CacheQuality(model, Letters(), TEXT, options(**changes))


def test_a_text_of_one_token_is_refused(model: Model) -> None:
    with pytest.raises(OptionError, match="text: expected at least two tokens, got 1"):
        CacheQuality(model, Letters(), "A", options(needles=0))


def test_plots(tmp_path: Path) -> None:
    rows = [
        {"format": "bf16", "bytes_per_token": 100, "kl": 0.0},
        {"format": "int8", "bytes_per_token": 60, "kl": 1e-4},
        {"format": "int4", "bytes_per_token": 40, "kl": 1e-2},
    ]
    target = tmp_path / "quality.svg"
    check_plot(target)
    draw_quality({"a text": rows, "another": rows[:2]}, target, title="Title")
    drawn = target.read_text()
    assert drawn.startswith("<?xml")
    assert "bytes of cache per token" in drawn or "glyph" in drawn
    with pytest.raises(OptionError, match=r"a file name ending in one of .*png.*, got .*quality.txt"):
        check_plot(tmp_path / "quality.txt")
    with pytest.raises(OptionError, match="a folder that exists"):
        check_plot(tmp_path / "none" / "quality.png")


def test_the_reference_is_measured_once_and_first() -> None:
    names = [format.name for format in Options(formats=("int8", "bf16", "int8")).all_formats]
    assert names == ["bf16", "int8"]
    assert cache_quality.REFERENCE == "bf16"
