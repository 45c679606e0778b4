"""Running certificates: rarely broken while the target is kept, soon where it is not."""

import itertools
import math

import numpy as np
import pytest

from edged import binomial
from edged.routing.drift import DELTA, EPOCH, MOST_STEPS, STEP, Running, Tally, log_wealth, lower_bound, threshold

STREAMS = 2_000


def broken_at(errors: np.ndarray, target: float) -> np.ndarray:
    """The place of each stream's first alarm, by the module's own rule; -1 for none. Shape: (streams, audits)."""
    count = errors.shape[1]
    wrong = np.cumsum(errors, axis=1)
    places = np.arange(1, count + 1)
    alarms = _wealth(wrong, places, target) >= math.log(2 / DELTA)
    for epoch in range(1, math.ceil(count / EPOCH) + 1):
        first = (epoch - 1) * EPOCH
        part = slice(first, min(count, epoch * EPOCH))
        before = wrong[:, first - 1 : first] if first else 0
        found = _wealth(wrong[:, part] - before, places[: part.stop - first], target)
        alarms[:, part] |= found >= math.log(2 * epoch * (epoch + 1) / DELTA)
    return np.where(alarms.any(axis=1), alarms.argmax(axis=1), -1)


def _wealth(wrong: np.ndarray, compared: np.ndarray, target: float) -> np.ndarray:
    gain = (1 - target) / target
    logs = [wrong * math.log1p(s * gain) + (compared - wrong) * math.log1p(-s) for s in binomial.STAKES]
    return np.logaddexp.reduce(logs) - math.log(len(logs))


@pytest.mark.parametrize("target", [0.05, 0.3])
def test_a_kept_target_breaks_no_more_often_than_said(target: float) -> None:
    """2,000 streams of 800 audits whose error is the target itself, looked at after every audit."""
    errors = np.random.default_rng(int(target * 100)).random((STREAMS, 800)) < target
    assert (broken_at(errors, target) >= 0).mean() <= DELTA


def test_answers_that_come_in_bursts_break_nothing() -> None:
    """Errors need not be independent: while no moment is worse than the target the bound holds."""
    draw = np.random.default_rng(7)
    moods = np.repeat(draw.choice([0.0, 0.05], (STREAMS, 20)), 40, axis=1)
    assert (broken_at(draw.random(moods.shape) < moods, 0.05) >= 0).mean() <= DELTA


@pytest.mark.parametrize(("error", "within"), [(0.15, 400), (0.3, 100), (0.6, 30)])
def test_a_stream_over_its_target_is_caught(error: float, within: int) -> None:
    """Target 5 %: the worse it is, the sooner; nine streams of ten within so many audits."""
    errors = np.random.default_rng(3).random((STREAMS, within)) < error
    assert (broken_at(errors, 0.05) >= 0).mean() >= 0.9


def test_a_good_past_does_not_pay_for_a_bad_present() -> None:
    """After 2,000 good audits a drift to 30 % is seen within 300 more in nine streams of ten."""
    draw = np.random.default_rng(5)
    before, after = draw.random((STREAMS // 4, 2_000)) < 0.02, draw.random((STREAMS // 4, 300)) < 0.3
    places = broken_at(np.concatenate([before, after], axis=1), 0.05)
    assert (places >= 2_000).mean() >= 0.9


@pytest.mark.parametrize("seed", range(5))
def test_the_certificate_itself_follows_the_rule(seed: int) -> None:
    """One audit after the other, over more than one epoch: broken exactly where the vectorised rule says."""
    errors = np.random.default_rng(seed).random((1, 3 * EPOCH)) < 0.09
    running, place = Running(), -1
    for number, wrong in enumerate(errors[0]):
        running = running.noted(wrong=bool(wrong))
        if running.is_broken(0.05):
            place = number
            break
    assert place == broken_at(errors, 0.05)[0]


def test_bounds_hold_the_share_and_narrow() -> None:
    """Lower <= seen <= upper, and more audits say more."""
    small, large = Running(whole=Tally(40, 4), recent=Tally(40, 4)), Running(whole=Tally(4000, 400))
    for running in (small, large):
        assert 0 <= running.lower_bound() <= 0.1 <= running.upper_bound() <= 1
    assert large.upper_bound() - large.lower_bound() < small.upper_bound() - small.lower_bound()
    assert (Running().lower_bound(), Running().upper_bound()) == (0, 1)


def test_wealth_falls_as_the_hypothesis_allows_more() -> None:
    """Else bisection would not find the bound."""
    for tally in (Tally(10, 1), Tally(100, 100), Tally(1000, 3)):
        wealth = [log_wealth(tally, error / 100) for error in range(1, 100)]
        assert all(one >= other - 1e-12 for one, other in itertools.pairwise(wealth))
        found = lower_bound(tally, delta=0.1)
        assert log_wealth(tally, max(found, 1e-12)) >= -math.log(0.1) - 1e-6 or found < 1e-9


def test_thresholds_tighten_step_by_step_until_nothing_passes() -> None:
    """0.05 a step; at 1, or after ten steps, nothing is kept; each step counts anew."""
    running = Running().noted(wrong=True)
    seen = [threshold(0.5, running)]
    for _ in range(MOST_STEPS + 1):
        running = running.tightened()
        assert running.whole == Tally()
        seen.append(threshold(0.5, running))
    assert seen[:3] == [0.5, 0.5 + STEP, 0.5 + 2 * STEP]
    assert seen[-2:] == [math.inf, math.inf]
    assert seen == sorted(seen)
    assert running.is_closed
    assert threshold(0.0, Running(steps=MOST_STEPS + 1)) == math.inf
