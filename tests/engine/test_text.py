from __future__ import annotations

from itertools import pairwise

from fakes import EOS, ByteStream
from hypothesis import given
from hypothesis import strategies as st

from latentkv.engine.text import OutputText, StopMatcher


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher.stopped


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    assert feed(["END"], ["hello E", "N", "OUGH E"]) == (["hello ", "", "ENOUGH ", "E"], False)


def test_a_stop_string_over_pieces_ends_the_text_before_it() -> None:
    assert feed(["END"], ["abcE", "N", "D and more", "and more"]) == (["abc", "", "", "", ""], True)


def test_a_false_start_inside_a_stop_string() -> None:
    assert feed(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", "", ""], True)


def test_the_stop_string_that_ends_first_wins_and_of_those_the_longest() -> None:
    assert "".join(feed(["abcd", "bc"], ["xabcd"])[0]) == "xa"
    assert "".join(feed(["bc", "abc"], ["xabcd"])[0]) == "x"


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 20)),
)
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    shown, stopped = feed(stops, pieces)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(shown) == (text[: min(ends)[1]] if ends else text)
    assert stopped == bool(ends)


def test_characters_are_whole_and_the_end_is_flushed() -> None:
    text = OutputText(ByteStream(), StopMatcher([]))
    shown = [text.push(byte) for byte in "né€".encode()]
    assert shown == ["n", "", "é", "", "", "€"]
    assert text.push("é".encode()[0]) == ""
    assert text.finish() == "\ufffd"
    assert text.push(EOS) == ""


def test_the_first_tokens_cannot_stop() -> None:
    text = OutputText(ByteStream(), StopMatcher(["a"]), unstoppable_tokens=2)
    assert [text.push(byte) for byte in b"abca"] == ["a", "b", "c", ""]
    assert text.stopped


def test_without_a_tokenizer_there_is_no_text() -> None:
    text = OutputText(None, StopMatcher([]))
    assert text.push(65) + text.finish() == ""
