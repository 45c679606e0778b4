"""One hot minute changes nothing; heat that lasts does, until it has been gone for as long (G16)."""

import pytest

from edged.routing.heat import HOT_C, Heat, Reading, Throttle

HOT_AND_SLOW = Reading(84.0, None, 0.6)


def after(throttle, reading, *, from_s, for_s, every_s=10):
    """The state after such a reading every few seconds."""
    heat = throttle.heat
    for at_s in range(from_s, from_s + for_s + 1, every_s):
        heat = throttle.note(reading, now_s=float(at_s))
    return heat


def test_one_hot_minute_slows_no_prediction():
    """Less than a minute, and a break in it counts."""
    throttle = Throttle()
    assert not after(throttle, HOT_AND_SLOW, from_s=0, for_s=50).throttled
    throttle.note(Reading(70.0, None, 1.0), now_s=55.0)
    assert after(throttle, HOT_AND_SLOW, from_s=60, for_s=50) == Heat(84.0, throttled=False, speed=1.0)


def test_heat_that_lasts_is_what_the_clock_says():
    """The share of full speed that is left."""
    assert after(Throttle(), HOT_AND_SLOW, from_s=0, for_s=60) == Heat(84.0, throttled=True, speed=0.6)


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(Reading(50.0, None, 0.3), id="an idle box clocks down"),
        pytest.param(Reading(90.0, None, 1.0), id="hot, and as fast as ever"),
        pytest.param(Reading(90.0, None, None), id="no clock to be read"),
        pytest.param(Reading(None, None, 0.3), id="no thermometer"),
        pytest.param(Reading(85.0, 100.0, 0.3), id="far from this chip's own limit"),
    ],
)
def test_without_heat_and_a_low_clock_nothing_is_throttled(reading):
    """Both together, or nothing."""
    assert after(Throttle(), reading, from_s=0, for_s=600) == Heat(reading.temperature_c, throttled=False, speed=1.0)


def test_a_throttled_box_recovers_once_it_was_cool_for_a_minute():
    """Ten degrees below where it began, so that the state does not flap; a pause in the load is no recovery."""
    throttle = Throttle()
    after(throttle, HOT_AND_SLOW, from_s=0, for_s=60)
    warm = Reading(HOT_C - 5, None, 0.9)
    assert after(throttle, warm, from_s=70, for_s=300).throttled
    cool = Reading(HOT_C - 20, None, 0.3)
    assert after(throttle, cool, from_s=380, for_s=50) == Heat(60.0, throttled=True, speed=0.6)
    assert after(throttle, cool, from_s=440, for_s=10).speed == 1.0
