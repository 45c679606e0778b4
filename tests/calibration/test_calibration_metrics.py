"""Metrics, against values worked out by hand."""

import pytest

from edged.calibration.metrics import accuracy_at, aurc, auroc, brier, ece


def test_auroc_is_the_chance_that_right_outranks_wrong():
    """Perfect, reversed, useless, and ties counting half."""
    assert auroc([0.9, 0.8, 0.2, 0.1], [True, True, False, False]) == 1.0
    assert auroc([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 0.0
    assert auroc([0.5] * 4, [True, False, True, False]) == 0.5
    assert auroc([0.9, 0.5, 0.5], [True, True, False]) == 0.75


def test_auroc_of_one_kind_only_is_unknown():
    """Not 0, not 1."""
    assert auroc([0.1, 0.2], [True, True]) is None
    assert auroc([], []) is None


def test_a_probability_that_is_right_as_often_as_it_says_has_no_calibration_error():
    """And one that always says 0.9 but is right half the time errs by 0.4."""
    assert ece([0.5] * 10, [True, False] * 5, bins=1) == pytest.approx(0.0)
    assert ece([0.9] * 10, [True, False] * 5, bins=1) == pytest.approx(0.4)
    assert ece([], []) == 0.0


def test_brier_is_the_squared_distance():
    """Certain and right 0, certain and wrong 1."""
    assert brier([1.0, 0.0], [True, False]) == 0.0
    assert brier([1.0, 0.0], [False, True]) == 1.0


def test_aurc_is_the_mean_error_of_the_most_trusted():
    """One error, ranked last of four or first."""
    assert aurc([4, 3, 2, 1], [True, True, True, False]) == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    assert aurc([4, 3, 2, 1], [False, True, True, True]) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_accuracy_of_the_most_confident_share():
    """The order of the scores decides, an empty share is unknown."""
    assert accuracy_at([4, 3, 2, 1], [True, True, False, False], coverage=0.5) == 1.0
    assert accuracy_at([4, 3, 2, 1], [True, True, False, False], coverage=1.0) == 0.5
    assert accuracy_at([1.0], [True], coverage=0.1) is None


def test_scores_and_labels_must_pair_up():
    """A missing label is a fault of the caller."""
    with pytest.raises(ValueError, match="labels"):
        auroc([0.1, 0.2], [True])
