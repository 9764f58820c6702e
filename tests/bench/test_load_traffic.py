"""Traffic is what its seed says: lengths near their means, prompts of the drawn length, shared beginnings, arrivals."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise
from pathlib import Path

import pytest

from latentkv.bench.load.traffic import (
    LENGTHS,
    Length,
    Planned,
    Traffic,
    parse_lengths,
    poisson_arrivals,
    read_prompts,
    read_words,
    repeated,
)
from latentkv.errors import OptionError


def test_the_same_seed_asks_the_same() -> None:
    one, same, other = (
        list(islice(Traffic(input=Length(20, 1), output=Length(9, 1), seed=seed).requests(), 20)) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_drawn_lengths_have_the_mean_that_is_cited() -> None:
    traffic = Traffic(
        input=LENGTHS["sharegpt"][0], output=LENGTHS["sharegpt"][1], longest_input=10**6, longest_output=10**6
    )
    drawn = list(islice(traffic.requests(), 4000))
    assert statistics.mean(len(one.prompt) for one in drawn) == pytest.approx(161.31, rel=0.1)
    assert statistics.mean(one.max_tokens for one in drawn) == pytest.approx(337.99, rel=0.1)


def test_lengths_stay_within_their_limits() -> None:
    traffic = Traffic(input=Length(500, 2), output=Length(500, 2), longest_input=64, longest_output=32, vocabulary=50)
    for one in islice(traffic.requests(), 200):
        assert 1 <= len(one.prompt) <= 64
        assert 1 <= one.max_tokens <= 32
        assert all(0 <= token < 50 for token in one.prompt)


def test_a_share_of_prompts_begins_the_same() -> None:
    traffic = Traffic(input=Length(40), output=Length(4), prefix_tokens=16, prefix_share=0.5, vocabulary=10**6)
    beginnings = [one.prompt[:16] for one in islice(traffic.requests(), 400)]
    shared = max(beginnings.count(beginning) for beginning in beginnings)
    assert 150 < shared < 250
    assert len(set(beginnings)) == 400 - shared + 1
    assert all(len(one.prompt) == 40 for one in islice(traffic.requests(), 20))


def test_words_follow_each_other_as_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two three four")
    words = read_words(tmp_path / "text")
    [one] = islice(Traffic(input=Length(3), output=Length(4), words=words).requests(), 1)
    assert str(one.prompt) in "one two three four one two three four"
    assert len(str(one.prompt).split()) == 3
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(OptionError, match="--text"):
        read_words(tmp_path / "empty")


def test_prompts_of_a_file_come_over_and_over(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hello", "max_tokens": 7}\n\n{"prompt": [1, 2, 3]}\n')
    found = read_prompts(path, output=Length(5), longest_output=9, seed=0)
    assert found == [Planned(0, "hello", 7), Planned(1, (1, 2, 3), 5)]
    assert [one.number for one in islice(repeated(found), 5)] == [0, 1, 2, 3, 4]
    assert [one.prompt for one in islice(repeated(found), 3)] == ["hello", (1, 2, 3), "hello"]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', ""])
def test_bad_files_of_prompts_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(OptionError, match="--prompts"):
        read_prompts(path, output=Length(5), longest_output=9, seed=0)


def test_arrivals_are_a_poisson_process() -> None:
    times = list(islice(poisson_arrivals(4.0, seed=0), 4000))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(0.25, rel=0.1)
    assert times == list(islice(poisson_arrivals(4.0, seed=0), 4000))


def test_lengths_are_named_or_fixed() -> None:
    assert parse_lengths("512/64") == (Length(512), Length(64))
    assert parse_lengths("alpaca") == LENGTHS["alpaca"]
    for text in ("512", "0/5", "a/b", "1/2/3"):
        with pytest.raises(OptionError, match="--lengths"):
            parse_lengths(text)
