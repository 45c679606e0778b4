"""AUROC, intervals and answers against small references worked out by hand."""

import itertools
import random

import numpy as np
import pytest

from edged.optimize import stats
from edged.optimize.stats import Answers


def some_answers(correct, confidence, task=None, choice=None):
    count = len(correct)
    return Answers(
        np.array(choice if choice is not None else [0] * count),
        np.array(correct, dtype=bool),
        np.array(confidence, dtype=float),
        np.array(task if task is not None else [0] * count),
    )


def auroc_by_counting(correct, confidence, task):
    """The definition, pair by pair."""
    pairs = [
        (confidence[i], confidence[j])
        for i, j in itertools.product(range(len(correct)), repeat=2)
        if correct[i] and not correct[j] and task[i] == task[j]
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("correct", "confidence", "expected"),
    [
        ([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], 1.0),
        ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], 0.0),
        ([1, 0], [0.5, 0.5], 0.5),
        ([1, 0, 1], [0.9, 0.5, 0.1], 0.5),
    ],
)
def test_auroc_is_how_often_a_right_answer_is_surer(correct, confidence, expected):
    """All in order is 1, all reversed is 0, a tie counts half."""
    assert stats.auroc(some_answers(correct, confidence)) == expected


def test_auroc_agrees_with_counting_pairs_within_tasks():
    """Confidences of different tasks are never compared."""
    chance = random.Random(1)
    for _ in range(50):
        task = [chance.randrange(2) for _ in range(20)]
        correct = [True, False, *(chance.random() < 0.6 for _ in range(18))]
        task[:2] = [0, 0]
        confidence = [round(chance.random(), 1) for _ in range(20)]
        expected = auroc_by_counting(correct, confidence, task)
        assert stats.auroc(some_answers(correct, confidence, task)) == pytest.approx(expected)


@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0]])
def test_without_right_and_wrong_answers_there_is_no_auroc(correct):
    """None, rather than a number that means nothing; a change from or to it is None too."""
    one_sided = some_answers(correct, [0.1, 0.2, 0.3])
    assert stats.auroc(one_sided) is None
    assert stats.auroc_change(one_sided, some_answers([1, 0, 1], [0.1, 0.2, 0.3])) is None


def test_a_file_compared_with_itself_has_changed_by_nothing():
    """Both intervals are exactly zero wide: the same items are drawn for both."""
    same = some_answers([1, 0, 1, 1, 0, 0, 1, 0], [0.9, 0.1, 0.7, 0.3, 0.4, 0.6, 0.5, 0.2])
    for change in (stats.accuracy_change(same, same), stats.auroc_change(same, same)):
        assert (change.value, change.low, change.high) == (0, 0, 0)


def test_the_accuracy_interval_is_that_of_the_paired_difference():
    """For n items the standard error of a mean difference d is sd / sqrt(n): the bootstrap must come to 1.96 of it."""
    chance = np.random.default_rng(3)
    before = chance.random(400) < 0.7
    flips = chance.random(400) < 0.1
    after = np.where(flips, ~before, before)
    change = stats.accuracy_change(some_answers(before, before), some_answers(after, after))
    difference = after.astype(float) - before.astype(float)
    error = 1.96 * difference.std() / 20
    assert change.value == pytest.approx(difference.mean())
    assert change.low == pytest.approx(difference.mean() - error, abs=0.006)
    assert change.high == pytest.approx(difference.mean() + error, abs=0.006)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    """Of 40 pairs of equally good files 2 may be expected to look different; more than 6 would be no 95 % interval."""
    chance = np.random.default_rng(4)
    missed = 0
    for _ in range(40):
        before = some_answers(chance.random(80) < 0.6, chance.random(80))
        after = some_answers(chance.random(80) < 0.6, chance.random(80))
        change = stats.auroc_change(before, after)
        missed += not change.low <= 0 <= change.high
    assert missed <= 6


def test_a_label_that_a_model_always_likes_is_taken_off():
    """With fixed labels only what a question changes counts; without, the scores are taken as they are."""
    scores = [[-1.0, -3.0], [-1.5, -2.0], [-1.0, -3.1]]
    plain = stats.answers(scores, (0, 1, 0), fixed_labels=False)
    corrected = stats.answers(scores, (0, 1, 0), fixed_labels=True)
    assert plain.choice.tolist() == [0, 0, 0]
    assert corrected.choice.tolist() == [0, 1, 0]
    assert corrected.correct.all()


def test_confidence_is_the_gap_of_the_two_most_likely():
    """Softmax of the scores: equal scores leave none, a certain one leaves nearly all."""
    given = stats.answers([[-1.0, -1.0, -9.0], [0.0, -20.0, -20.0]], (0, 0), fixed_labels=False)
    assert given.confidence[0] == pytest.approx(0)
    assert given.confidence[1] == pytest.approx(1, abs=1e-6)


def test_agreement_is_the_share_of_equal_choices():
    a = some_answers([1, 1, 0], [0, 0, 0], choice=[1, 2, 3])
    b = some_answers([1, 1, 0], [0, 0, 0], choice=[1, 2, 0])
    assert stats.agreement(a, b) == pytest.approx(2 / 3)
