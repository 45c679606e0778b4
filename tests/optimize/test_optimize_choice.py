"""The rule, as a table."""

import random

import pytest

from edged.optimize.choice import Measured, Verdict, choose, judge
from edged.optimize.stats import Interval

SAME = Interval(0.0, -0.02, 0.02)


def a_format(name="Q8_0", *, speed=2.0, accuracy=SAME, auroc=SAME, size_bytes=100):
    return Measured(name, speed, size_bytes, accuracy, auroc)


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, Verdict.GOOD),
        ({"speed": 1.05}, Verdict.GOOD),
        ({"speed": 1.04}, Verdict.SLOWER),
        ({"speed": 0.5, "accuracy": None, "auroc": None}, Verdict.SLOWER),
        ({"accuracy": None}, Verdict.LESS_ACCURATE),
        ({"accuracy": Interval(-0.02, -0.05, 0.01)}, Verdict.GOOD),
        ({"accuracy": Interval(-0.021, -0.05, 0.01)}, Verdict.LESS_ACCURATE),
        ({"accuracy": Interval(-0.01, -0.015, -0.005)}, Verdict.LESS_ACCURATE),
        ({"accuracy": Interval(-0.01, -0.02, 0.0)}, Verdict.GOOD),
        ({"accuracy": Interval(0.05, 0.01, 0.09)}, Verdict.GOOD),
        ({"auroc": Interval(-0.03, -0.08, 0.02)}, Verdict.GOOD),
        ({"auroc": Interval(-0.031, -0.08, 0.02)}, Verdict.LESS_SURE),
        ({"auroc": Interval(-0.01, -0.02, -0.001)}, Verdict.LESS_SURE),
        ({"auroc": None}, Verdict.GOOD),
    ],
)
def test_a_format_is_judged_by_speed_then_accuracy_then_auroc(fields, verdict):
    """Not faster, measurably worse, or worse by more than the limit: the first that holds is the verdict."""
    assert judge(a_format(**fields)) is verdict


def test_the_fastest_good_format_is_chosen():
    """A faster one that is worse does not count."""
    worse = a_format("Q4_0", speed=3.0, auroc=Interval(-0.07, -0.1, -0.04))
    assert choose([a_format("Q5_0", speed=1.2), a_format("Q8_0", speed=2.0), worse]) == "Q8_0"


def test_among_equally_fast_formats_the_surer_one_is_chosen():
    """Within 3 % of the fastest, what the confidence is worth decides; beyond that, speed does."""
    fastest = a_format("Q4_0", speed=2.0, auroc=Interval(-0.02, -0.05, 0.01))
    surer = a_format("IQ4_NL", speed=1.95, auroc=Interval(0.01, -0.02, 0.04))
    assert choose([fastest, surer]) == "IQ4_NL"
    assert choose([fastest, a_format("Q8_0", speed=1.9)]) == "Q4_0"


@pytest.mark.parametrize("candidates", [[], [a_format(speed=1.0)], [a_format(accuracy=Interval(-0.1, -0.2, -0.05))]])
def test_without_a_good_format_the_published_file_stays(candidates):
    """Nothing is installed for its own sake."""
    assert choose(candidates) is None


def test_what_is_chosen_is_always_good_and_never_slower_than_a_tie():
    """Whatever the measurements: the choice passed every rule, and no good format is more than 3 % faster."""
    chance = random.Random(2)

    def an_interval():
        middle = chance.uniform(-0.1, 0.1)
        return Interval(middle, middle - chance.uniform(0, 0.1), middle + chance.uniform(0, 0.1))

    for _ in range(500):
        table = [
            a_format(str(i), speed=chance.uniform(0.5, 3), accuracy=an_interval(), auroc=an_interval())
            for i in range(5)
        ]
        good = {c.weight_format: c for c in table if judge(c) is Verdict.GOOD}
        choice = choose(table)
        assert (choice is None) == (not good)
        if choice is not None:
            assert good[choice].speed >= 0.97 * max(c.speed for c in good.values())
