"""Which answers are audited, and when two agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.routing.audit import Measure, Said, compare, is_sampled


def of_text(one, other):
    return compare(Said(one), Said(other), is_json=False, is_exact=False)


def of_json(one, other):
    return compare(Said(one), Said(other), is_json=True, is_exact=False)


@given(ids=st.lists(st.text(max_size=20), max_size=20), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_sample_depends_on_id_and_seed_alone_and_grows_with_the_share(ids, share, seed):
    """Who is audited at a share is audited at every larger one; 0 is nobody, 1 is everybody."""
    for one in ids:
        taken = is_sampled(one, share=share, seed=seed)
        assert taken == is_sampled(one, share=share, seed=seed)
        assert not taken or is_sampled(one, share=min(1.0, share + 0.1), seed=seed)
        assert is_sampled(one, share=1.0, seed=seed)
        assert not is_sampled(one, share=0.0, seed=seed)


def test_the_sample_has_the_size_asked_for_and_another_seed_takes_others():
    """A tenth of ten thousand, within four standard deviations."""
    first, second = ({i for i in range(10_000) if is_sampled(f"r{i}", share=0.1, seed=s)} for s in (0, 1))
    assert 880 <= len(first) <= 1120
    assert len(first & second) < 200


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [
        ('{"a": 1, "b": [true]}', '{ "b":[true], "a":1.0 }', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ("no json", "no json", False),
    ],
)
def test_json_agrees_by_value(one, other, agreed):
    """Order of members and spelling of numbers aside; true is no number; what does not parse agrees with nothing."""
    found = of_json(one, other)
    assert (found.measure, found.agreed) == (Measure.JSON, agreed)


def test_calls_agree_by_function_and_arguments_in_any_order():
    """A call on one side alone is a disagreement, whatever the text."""
    one = Said("", (("f", '{"x": 1}'), ("g", "")))
    other = Said("Let me look.", (("g", "{}"), ("f", '{"x":1.0}')))
    assert compare(one, other, is_json=False, is_exact=False).agreed
    assert not compare(one, Said("f(1)"), is_json=True, is_exact=False).agreed
    assert not compare(Said("", (("f", "{x"),)), Said("", (("f", "{x"),)), is_json=False, is_exact=False).agreed


def test_a_closed_set_agrees_exactly():
    """Space around it aside."""
    assert compare(Said("yes\n"), Said("yes"), is_json=False, is_exact=True).agreed
    assert not compare(Said("yes"), Said("Yes"), is_json=False, is_exact=True).agreed


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        ("The answer is: Positive.", "answer is positive", 1.0),
        ("a b c d", "b c", 0.8),
        ("yes", "no", 0.0),
        ("", "", 1.0),
    ],
)
def test_text_agrees_by_its_words(one, other, score):
    """Case, punctuation and articles aside; agreed from an F1 of one half on."""
    found = of_text(one, other)
    assert (found.measure, found.score, found.agreed) == (Measure.WORDS, pytest.approx(score), score >= 0.5)
