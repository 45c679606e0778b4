"""From the odds of options to an answer: what is compared, and what recent traffic takes off."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.questions import Question, QuestionKind
from edged.routing.decisions import FEWEST_STATES, LabelPriors, Method, judge, stepwise

ASKED = Question(name="q", kind=QuestionKind.CHOICE, options=("a", "b"))


def test_options_that_come_once_are_compared_by_their_mean():
    """A long option is not punished for its length."""
    verdict = judge([[-1.0], [-0.5, -0.5, -0.5]])
    assert (verdict.best, verdict.method) == (1, Method.MEAN_LOGPROB)
    assert verdict.confidence == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert verdict.margin == pytest.approx(2 * verdict.confidence - 1)
    assert verdict.expected == pytest.approx(verdict.confidence)


def test_names_are_as_likely_as_they_would_be_written():
    """Token by token, among what the others leave to choose from; a token that two share is one token."""
    verdict = judge([[-1.0], [-0.5, -9.0], [-0.5, -8.0, -7.0]], are_names=True)
    assert (verdict.best, verdict.method) == (2, Method.STEPWISE)
    first = 1 / (1 + math.exp(-0.5))
    second = 1 / (1 + math.exp(-1.0))
    assert verdict.probabilities == pytest.approx((1 - first, first * (1 - second), first * second))


@given(st.lists(st.lists(st.sampled_from([-0.1, -0.13, -1.0, -5.0]), min_size=1, max_size=4), min_size=1, max_size=12))
def test_whatever_options_share_their_probabilities_are_one(logprobs):
    """Options that are the same, or the beginning of another, too."""
    found = stepwise(logprobs)
    assert sum(found) == pytest.approx(1.0)
    assert all(p >= 0 for p in found)


def test_what_is_usual_for_an_option_is_taken_off_once_it_is_known():
    """By API key: another one's traffic counts for nothing."""
    priors = LabelPriors()
    for _ in range(FEWEST_STATES):
        first = priors.judge(ASKED, [[-1.0], [-5.0]], tenant="x", model="m")
        assert (first.best, first.method) == (0, Method.MEAN_LOGPROB)
    later = priors.judge(ASKED, [[-1.0], [-4.0]], tenant="x", model="m")
    assert (later.best, later.method) == (1, Method.LABEL_PRIOR)
    assert later.probabilities[1] == pytest.approx(1 / (1 + math.exp(-1)))
    assert priors.judge(ASKED, [[-1.0], [-4.0]], tenant="y", model="m").method is Method.MEAN_LOGPROB
