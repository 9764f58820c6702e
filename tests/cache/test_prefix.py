from __future__ import annotations

import pytest

from latentkv.cache.prefix import Beginning, PrefixIndex


def constant(data: bytes) -> bytes:
    return b"x"


def one_bit(data: bytes) -> bytes:
    return bytes([sum(data) & 1])


def make(identity: bytes = b"model", **options: object) -> PrefixIndex:
    return PrefixIndex(page_tokens=2, identity=identity, **options)


def test_full_pages_are_found_in_order_and_partial_ones_are_not_indexed() -> None:
    index = make()
    assert index.insert([1, 2, 3, 4, 5], [10, 11, 12]).pages == (10, 11)
    assert index.match([1, 2, 3, 4, 5, 6, 7]).pages == (10, 11)
    assert index.match([1, 2, 9, 9, 9]).pages == (10,)
    assert index.match([9, 2, 3, 4, 5]).pages == ()
    assert index.pages == {10, 11}


def test_at_least_one_token_is_always_left_to_compute() -> None:
    index = make()
    index.insert([1, 2, 3, 4], [10, 11])
    assert index.match([1, 2, 3, 4]).pages == (10,)
    assert index.match([1, 2]).pages == ()
    assert index.match([1]).pages == ()
    assert index.match([]).pages == ()


def test_equal_pages_after_different_beginnings_are_different() -> None:
    index = make()
    index.insert([1, 2, 7, 7], [10, 11])
    index.insert([3, 4, 7, 7], [20, 21])
    assert index.match([3, 4, 7, 7, 0]).pages == (20, 21)
    assert index.match([1, 2, 7, 7, 0]).pages == (10, 11)


def test_another_identity_has_other_digests() -> None:
    digests = set()
    for identity in (b"model", b"other"):
        index = make(identity)
        index.insert([1, 2], [10])
        digests |= set(index._entries)
    assert len(digests) == 2


def test_a_forgotten_page_hides_what_follows_until_it_is_back() -> None:
    index = make()
    index.insert([1, 2, 3, 4], [10, 11])
    index.forget(10)
    index.forget(10)
    assert index.match([1, 2, 3, 4, 5]).pages == ()
    assert index.insert([1, 2, 3, 4], [20, 21]).pages == (20,)
    assert index.match([1, 2, 3, 4, 5]).pages == (20, 11)


def test_known_contents_keep_their_first_page() -> None:
    index = make()
    index.insert([1, 2], [10])
    assert index.insert([1, 2, 3, 4], [20, 21]).pages == (21,)
    assert index.match([1, 2, 3, 4, 5]).pages == (10, 21)


def test_inserting_bit_by_bit_equals_inserting_at_once() -> None:
    tokens = list(range(20))
    index, tail = make(), None
    for computed in range(1, 21):
        tail = index.insert(tokens[:computed], list(range(10)), after=tail).tail
    assert tail is not None
    assert tail.depth == 10
    at_once = make()
    at_once.insert(tokens, list(range(10)))
    assert index._entries.keys() == at_once._entries.keys()
    assert index.match([*tokens, 0]) != index.match(tokens)
    assert index.match([*tokens, 0]).pages == tuple(range(10))


def test_a_match_can_be_continued() -> None:
    index = make()
    index.insert([1, 2], [10])
    found = index.match([1, 2, 3, 4, 5])
    assert index.insert([1, 2, 3, 4, 5], [10, 11, 12], after=found.tail).pages == (11,)


@pytest.mark.parametrize("digest", [constant, one_bit])
def test_colliding_digests_never_give_wrong_pages(digest: object) -> None:
    index = make(digest=digest)
    contents: dict[int, list[int]] = {}
    prompts = [[a, b, c, d] for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
    for number, prompt in enumerate(prompts):
        pages = [2 * number, 2 * number + 1]
        for page in index.insert(prompt, pages).pages:
            contents[page] = prompt[: 2 + 2 * pages.index(page)]
        if number % 5 == 0:
            index.forget(2 * (number // 2))
        for wanted in prompts:
            for depth, page in enumerate(index.match([*wanted, 0]).pages):
                assert contents[page] == wanted[: 2 * depth + 2]
    assert index.pages


def test_a_page_that_begins_as_wanted_is_found_and_the_longest_first() -> None:
    index = PrefixIndex(page_tokens=4, identity=b"model")
    index.insert([1, 2, 3, 4, 5, 6, 7, 8], [10, 11])
    index.insert([1, 2, 3, 4, 5, 6, 9, 9], [20, 21])
    tail = index.match([1, 2, 3, 4, 0]).tail
    assert index.beginning([1, 2, 3, 4, 5, 6, 9, 0, 0], tail) == Beginning(21, 3)
    assert index.beginning([1, 2, 3, 4, 5, 6, 9], tail) == Beginning(11, 2), "one token is left to compute"
    assert index.beginning([1, 2, 3, 4, 5], tail) is None
    assert index.beginning([1, 2, 3, 4, 6, 6], tail) is None
    assert index.beginning([1, 2, 9, 9], None) == Beginning(10, 2)
    assert index.forget(21).token_ids == (5, 6, 9, 9)
    assert index.beginning([1, 2, 3, 4, 5, 6, 9, 0, 0], tail) == Beginning(11, 2)
    assert index.forget(21) is None


@pytest.mark.parametrize("digest", [constant, one_bit])
def test_colliding_digests_never_give_wrong_beginnings(digest: object) -> None:
    index = PrefixIndex(page_tokens=2, identity=b"model", digest=digest)
    contents: dict[int, list[int]] = {}
    prompts = [[a, b, c, d] for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
    for number, prompt in enumerate(prompts):
        taken = index.insert(prompt, [2 * number, 2 * number + 1]).pages
        contents |= {page: prompt[: 2 + 2 * (page % 2)] for page in taken}
        for wanted in prompts:
            found = index.match(wanted)
            beginning = index.beginning(wanted, found.tail)
            if beginning is not None:
                known = 2 * len(found.pages) + beginning.tokens
                assert contents[beginning.page][:known] == wanted[:known]


def test_following_links_are_those_that_would_be_inserted() -> None:
    index = make()
    links = list(index.following([1, 2, 3, 4, 5], None))
    assert [link.token_ids for link in links] == [(1, 2), (3, 4)]
    assert [link.digest for link in index.insert([1, 2, 3, 4], [10, 11]).links] == [link.digest for link in links]
    assert [link.depth for link in index.following([1, 2, 3, 4, 5], links[0])] == [2]
    assert list(index.following([1, 2, 3, 4], links[0])) == [], "one token is left to compute"


def test_a_page_is_found_even_when_those_before_it_are_forgotten() -> None:
    index = make()
    links = index.insert([1, 2, 3, 4], [10, 11]).links
    index.forget(10)
    known = list(index.following([1, 2, 3, 4, 5], None))
    assert [index.find(link) for link in known] == [None, 11]
    assert index.find(links[1]) == 11
    assert index.find(next(index.following([3, 4, 5], None))) is None
