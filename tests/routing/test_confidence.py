"""L0 confidence: a ranking that gets no better by worse evidence."""

import math

import pytest
from builders import tokens
from hypothesis import given
from hypothesis import strategies as st

from edged.core import Token
from edged.routing.confidence import CEILING, free_text_score

logprobs = st.floats(-40, 0)
answers = st.lists(logprobs, min_size=1, max_size=60)


def score(values):
    return free_text_score([Token(b"x", value) for value in values])


@given(answers)
def test_a_score_lies_between_zero_and_the_ceiling(values):
    """No uncalibrated score claims certainty."""
    assert 0 <= score(values) <= CEILING < 1


def test_certainty_in_every_token_still_stays_below_one():
    """``min_confidence`` 1.0 always defers."""
    assert score([0.0] * 50) == CEILING


@given(answers, st.data(), st.floats(0, 20))
def test_a_worse_token_never_raises_the_score(values, data, loss):
    """Monotone in every single token."""
    place = data.draw(st.integers(0, len(values) - 1))
    worse = [*values[:place], values[place] - loss, *values[place + 1 :]]
    assert score(worse) <= score(values) + 1e-12


def test_one_bad_stretch_costs_more_than_the_same_loss_spread_out():
    """An answer that is fluent on average is spoiled by one window of doubt."""
    spread = [-0.05, -0.05, -0.05, -1.25] * 10
    stretch = [-0.05] * 20 + [-1.25] * 10 + [-0.05] * 10
    assert math.isclose(sum(spread), sum(stretch))
    assert score(stretch) < score(spread) < score([-0.05] * 40)


def test_no_evidence_is_no_score():
    """Missing is not zero, and not one either."""
    assert free_text_score([]) is None
    assert score([math.nan, math.nan]) is None


def test_an_unmeasured_token_is_left_out():
    """A token without a probability says nothing about its neighbours."""
    assert score([-0.3, math.nan, -0.3]) == score([-0.3, -0.3])


def test_an_impossible_token_is_bad_evidence_and_not_missing_evidence():
    """Probability zero lowers the score and leaves it a number."""
    fine, broken = free_text_score(tokens(0.9, 0.9)), free_text_score(tokens(0.9, 0))
    assert broken is not None
    assert 0 <= broken < 0.1 < fine


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_a_steady_answer_scores_the_same_at_any_length(count):
    """Length alone is no evidence."""
    assert score([-0.7] * count) == pytest.approx(score([-0.7]))
