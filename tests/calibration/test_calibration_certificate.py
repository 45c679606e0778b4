"""Certificates: the bound is exact, the walk never peeks, and the stated error holds."""

import math
import random

import pytest

from edged.calibration.certificate import (
    certify,
    fewest_items,
    grid,
    lower_bound,
    most_coverage,
    upper_bound,
)


@pytest.mark.parametrize(
    ("wrong", "served", "bound"),
    # scipy.stats.beta.ppf(1 - 0.1, wrong + 1, served - wrong)
    [(0, 45, 0.04988), (5, 200, 0.04581), (18, 500, 0.04908), (0, 22, 0.09937), (14, 200, 0.10003), (40, 500, 0.09785)],
)
def test_the_bound_is_the_exact_one(wrong, served, bound):
    """Reference values of the beta quantile."""
    assert upper_bound(wrong, served, delta=0.1) == pytest.approx(bound, abs=2e-3)
    assert _tail(wrong, served, upper_bound(wrong, served, delta=0.1)) == pytest.approx(0.1, abs=1e-9)


def _tail(wrong, served, rate):
    return sum(math.comb(served, k) * rate**k * (1 - rate) ** (served - k) for k in range(wrong + 1))


def test_a_bound_without_evidence_says_nothing():
    """All wrong, or nothing served: the error may be 1."""
    assert upper_bound(0, 0, delta=0.1) == 1.0
    assert upper_bound(7, 7, delta=0.1) == 1.0
    assert lower_bound(0, 7, delta=0.1) == 0.0


def test_the_bounds_enclose_the_observed_rate():
    """Upper above, lower below, closer with more items."""
    for served in (10, 100, 1000):
        wrong = served // 10
        assert lower_bound(wrong, served, delta=0.05) < 0.1 < upper_bound(wrong, served, delta=0.05)
    assert upper_bound(100, 1000, delta=0.05) < upper_bound(10, 100, delta=0.05)


@pytest.mark.parametrize(("wrong", "served", "delta"), [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_an_impossible_count_is_refused(wrong, served, delta):
    """Numbers that cannot be are a fault of the caller."""
    with pytest.raises(ValueError, match=r"impossible|delta"):
        upper_bound(wrong, served, delta=delta)


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 45), (0.10, 22), (0.02, 114)])
def test_so_many_items_without_an_error_are_needed(alpha, needed):
    """One fewer cannot certify."""
    assert fewest_items(alpha, 0.1) == needed
    assert upper_bound(0, needed, delta=0.1) <= alpha < upper_bound(0, needed - 1, delta=0.1)


def test_thresholds_serve_even_shares_of_traffic_and_the_last_one_all():
    """Strict to loose, no threshold twice."""
    scores = [i / 1000 for i in range(1000)]
    thresholds = grid(scores, size=10)
    assert [sum(score >= t for score in scores) for t in thresholds] == list(range(100, 1001, 100))
    assert grid([0.5] * 30) == (0.5,)
    assert grid([]) == ()


def _world(rng, items, *, accuracy, skill):
    """Scores and labels: right answers score higher the larger ``skill`` is."""
    correct = [rng.random() < accuracy for _ in range(items)]
    return [rng.gauss(skill if right else 0.0, 1.0) for right in correct], correct


def _certify(scores, correct, traffic, alpha):
    return certify(scores, correct, alpha=alpha, delta=0.1, thresholds=grid(traffic), traffic_scores=traffic)


def test_the_stated_error_is_broken_no_more_often_than_stated():
    """200 worlds, each certified on 300 items and judged on 3,000 others: at most delta of them are over alpha."""
    broken, served = 0, 0
    for seed in range(200):
        rng = random.Random(seed)
        traffic, _ = _world(rng, 300, accuracy=0.85, skill=1.5)
        certificate = _certify(*_world(rng, 300, accuracy=0.85, skill=1.5), traffic, 0.1)
        if certificate is None:
            continue
        served += 1
        scores, correct = _world(rng, 3000, accuracy=0.85, skill=1.5)
        kept = [right for score, right in zip(scores, correct, strict=True) if score >= certificate.threshold]
        broken += kept.count(False) / len(kept) > 0.1
    assert served > 130
    assert broken <= 20


def test_a_score_that_knows_nothing_of_a_bad_model_is_uncertified():
    """No threshold is a possible result, and the right one here."""
    rng = random.Random(1)
    traffic, _ = _world(rng, 500, accuracy=0.5, skill=0.0)
    assert _certify(*_world(rng, 500, accuracy=0.5, skill=0.0), traffic, 0.2) is None


def test_a_perfect_model_is_served_whole():
    """Everything right: the loosest threshold is certified."""
    traffic = [i / 200 for i in range(200)]
    certificate = _certify(traffic, [True] * 200, traffic, 0.1)
    assert certificate is not None
    assert (certificate.threshold, certificate.coverage, certificate.wrong) == (0.0, 1.0, 0)


def test_a_certificate_states_the_overall_delta_and_a_bound_at_the_walks_own_level():
    """The three walks share the delta; the bound is the one that was held against alpha."""
    traffic = [i / 200 for i in range(200)]
    certificate = _certify(traffic, [True] * 200, traffic, 0.1)
    assert certificate is not None
    assert certificate.delta == 0.1
    assert certificate.bound == upper_bound(0, 200, delta=0.1 / 3) <= certificate.alpha


def test_too_few_items_certify_nothing():
    """However right they are."""
    scores = [i / 20 for i in range(20)]
    assert _certify(scores, [True] * 20, scores, 0.05) is None


def test_what_could_be_served_at_best_follows_from_the_accuracy():
    """Coverage <= accuracy / (1 - alpha): with half the answers right, no score serves more than 5 of 9."""
    assert most_coverage(0.5, 0.1) == pytest.approx(5 / 9)
    assert most_coverage(0.98, 0.1) == 1.0


def test_scores_and_labels_must_pair_up():
    """A missing label is a fault of the caller."""
    with pytest.raises(ValueError, match="2 scores for 1 labels"):
        certify([0.1, 0.2], [True], alpha=0.1, delta=0.1, thresholds=[0.1], traffic_scores=[0.1])
