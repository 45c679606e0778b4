"""Prompt lookup: what a sequence's own tokens foretell, and how far that has been right."""

import itertools
import random

import pytest

from edged.engine.lookup import LONGEST_MATCH, MOST_INDEXED_TOKENS, Lookup, Odds


def a_lookup(tokens) -> Lookup:
    return Lookup(list(tokens), Odds())


def said(lookup: Lookup, tokens: list[int], new) -> None:
    """The sequence gains tokens one after another."""
    for token in new:
        tokens.append(token)
        lookup.catch_up()


def test_what_followed_last_time_is_foreseen():
    assert a_lookup(b"the cat sat. the c").draft(6) == tuple(b"at sat")


def test_the_longest_match_counts_and_of_equals_the_latest():
    """A longer common past beats a later one; without that the later one does."""
    assert a_lookup(b"xabc1 yabc2 xabc").draft(1) == tuple(b"1")
    assert a_lookup(b"abc1 abc2 abc").draft(1) == tuple(b"2")


@pytest.mark.parametrize("tokens", [b"", b"a", b"ab", b"abcdefgh", b"a b"])
def test_what_never_repeated_foretells_nothing(tokens):
    lookup = a_lookup(tokens)
    assert lookup.length == 0
    assert lookup.chances(7) == []


def test_a_repetition_goes_on_with_itself():
    """A draft longer than what is known of a loop continues the loop."""
    assert a_lookup(b"abcabc").draft(7) == tuple(b"abcabca")
    assert a_lookup(b"aaa").draft(4) == tuple(b"aaaa")


@pytest.mark.parametrize("seed", range(40))
def test_every_foresight_follows_a_place_that_ends_alike(seed):
    """Whatever is said, in steps of whatever size: the match is real, and as long as it claims."""
    draw = random.Random(seed)
    tokens = draw.choices(range(3), k=draw.randrange(1, 40))
    lookup = Lookup(tokens, Odds())
    for _ in range(150):
        tokens += draw.choices(range(draw.choice([2, 4])), k=draw.randrange(1, 5))
        lookup.catch_up()
        if not lookup.length:
            assert tuple(tokens[-2:]) not in list(itertools.pairwise(tokens[:-1]))
            continue
        (foreseen,) = lookup.draft(1)
        past = tokens[-min(lookup.length, LONGEST_MATCH) :]
        places = (end for end in range(len(past), len(tokens)) if tokens[end - len(past) : end] == past)
        assert any(tokens[end] == foreseen for end in places)


def test_a_match_grows_while_it_comes_true_and_another_is_sought_when_not():
    tokens = list(b"one two three. one ")
    lookup = Lookup(tokens, Odds())
    grown = []
    for token in b"two t":
        said(lookup, tokens, [token])
        grown.append(lookup.length)
    assert grown == sorted(grown)
    assert lookup.draft(4) == tuple(b"hree")
    said(lookup, tokens, b"w")
    assert lookup.draft(1) == tuple(b"o"), "as in 'two'"


def test_odds_learn_from_tokens_that_were_never_drafted():
    """What was foreseen is held against what came, at no cost: a copy is trusted, contradictions are not."""
    odds = Odds()
    tokens = list(b"abcdefghij klmnop qrstuv. ")
    lookup = Lookup(tokens, odds)
    before = odds.chance(12)
    said(lookup, tokens, b"abcdefghij klmnop qrst")
    assert odds.chance(12) > before
    trusted = lookup.chances(3)
    assert trusted == sorted(trusted, reverse=True)
    draw = random.Random(1)
    tokens = draw.choices(range(6), k=60)
    odds = Odds()
    lookup = Lookup(tokens, odds)
    said(lookup, tokens, draw.choices(range(6), k=300))
    assert odds.chance(2) < 0.35


def test_a_new_sequence_leans_on_what_others_showed_and_then_on_itself():
    shared = Odds()
    for _ in range(100):
        Odds(prior=shared).note(5, hit=False)
    newcomer = Odds(prior=shared)
    assert newcomer.chance(5) < 0.1
    for _ in range(10):
        newcomer.note(5, hit=True)
    assert newcomer.chance(5) > 0.6


def test_the_index_of_one_sequence_is_bounded():
    """Of a long context the latest part is known; what lies further back is forgotten as the sequence grows."""
    tokens = [7, 8, 9, *range(100, 100 + MOST_INDEXED_TOKENS + 50)]
    lookup = Lookup(tokens, Odds())
    assert lookup.indexed_pairs <= MOST_INDEXED_TOKENS
    said(lookup, tokens, [7, 8])
    assert lookup.length == 0
    said(lookup, tokens, range(50_000, 50_200))
    assert lookup.indexed_pairs <= MOST_INDEXED_TOKENS
    said(lookup, tokens, [50_010, 50_011])
    assert lookup.draft(2) == (50_012, 50_013)


def test_a_growing_sequence_forgets_the_pairs_that_fall_out():
    tokens = list(range(MOST_INDEXED_TOKENS - 5))
    lookup = Lookup(tokens, Odds())
    said(lookup, tokens, range(30_000, 30_100))
    assert lookup.indexed_pairs <= MOST_INDEXED_TOKENS
    said(lookup, tokens, [3, 4])
    assert lookup.length == 0
