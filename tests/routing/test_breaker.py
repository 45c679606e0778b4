"""A breaker opens for an upstream that fails, for nothing else, and lets it come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import (
    ModelNotFound,
    Unsupported,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamOffline,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from edged.routing.breaker import KEY_SETTINGS, Breaker, BreakerSettings, Circuit, Finding, finding

QUICK = BreakerSettings(min_calls=4, keep_calls=8, open_s=5.0, max_open_s=20.0, calm_s=30.0, gentle_s=1.0)


def call(breaker, good, now_s):
    """One call that begins and ends at once."""
    breaker.end(breaker.begin(now_s=now_s), good=good, now_s=now_s)


def tripped(settings=QUICK, *, now_s=0.0):
    breaker = Breaker(settings)
    for _ in range(settings.min_calls):
        call(breaker, False, now_s)
    assert breaker.state(now_s=now_s) is Circuit.OPEN
    return breaker


def denied(status):
    error = UpstreamDenied("no", upstream="a")
    error.answered = status
    return error


def unreached():
    error = UpstreamUnavailable("refused", upstream="a")
    error.reached = False
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, Finding.GOOD),
        (UpstreamUnavailable("500", upstream="a"), Finding.BAD),
        (UpstreamProtocolError("html", upstream="a"), Finding.BAD),
        (UpstreamTimeout("late", upstream="a", code="first_token_timeout"), Finding.BAD),
        (UpstreamBusy("429", upstream="a"), Finding.BAD),
        (UpstreamBusy("429", upstream="a", retry_after_s=0.1), Finding.BAD),
        (UpstreamBusy("429", upstream="a", retry_after_s=20.0), Finding.NOTHING),
        (UpstreamRejected("400", upstream="a"), Finding.NOTHING),
        (UpstreamTimeout("the caller's", upstream="a", code="deadline_exceeded"), Finding.NOTHING),
        (UpstreamOffline("never tried", upstream="a"), Finding.NOTHING),
        (Unsupported("never called"), Finding.NOTHING),
        (ModelNotFound("never called"), Finding.NOTHING),
        (denied(401), Finding.DENIED),
        (denied(402), Finding.DENIED),
        (denied(403), Finding.FORBIDDEN),
        (denied(None), Finding.DENIED),
        (unreached(), Finding.UNREACHED),
    ],
)
def test_each_ending_of_a_call_has_one_meaning(error, expected):
    """The caller's own faults and deadlines say nothing about an upstream; a wait it named is kept elsewhere (F02)."""
    assert finding(error) is expected


def test_one_blip_trips_nothing():
    """A single failure, or a few among many good answers, changes nothing (F02)."""
    breaker = Breaker(QUICK)
    call(breaker, False, 0.0)
    assert breaker.wait_s(now_s=0.0) == 0.0
    for second in range(100):
        call(breaker, second % 4 != 3, float(second))
        assert breaker.state(now_s=float(second)) is Circuit.CLOSED


def test_calls_that_say_nothing_never_trip():
    """Twenty bad requests are the caller's affair (F02)."""
    breaker = Breaker(QUICK)
    for _ in range(20):
        call(breaker, None, 0.0)
    assert breaker.state(now_s=0.0) is Circuit.CLOSED


def test_old_failures_are_forgotten():
    """Four failures spread over hours are four blips."""
    breaker = Breaker(QUICK)
    for hour in range(4):
        call(breaker, False, hour * 3600.0)
    assert breaker.state(now_s=4 * 3600.0) is Circuit.CLOSED


def test_an_open_breaker_lets_one_probe_through_when_its_time_is_over():
    """Half-open: one call at a time; its success closes, and the past is forgotten."""
    breaker = tripped()
    assert breaker.wait_s(now_s=1.0) == 4.0
    assert breaker.state(now_s=5.0) is Circuit.HALF_OPEN
    probe = breaker.begin(now_s=5.0)
    assert breaker.wait_s(now_s=5.0) > 0
    breaker.end(probe, good=True, now_s=6.0)
    assert breaker.state(now_s=6.0) is Circuit.CLOSED
    call(breaker, False, 6.0)
    assert breaker.state(now_s=6.0) is Circuit.CLOSED


def test_a_probe_that_says_nothing_makes_room_for_the_next():
    """A client that hung up on the probe does not hold the half-open state for ever."""
    breaker = tripped()
    call(breaker, None, 5.0)
    assert breaker.wait_s(now_s=5.0) == 0.0
    assert breaker.state(now_s=5.0) is Circuit.HALF_OPEN


def test_each_failed_probe_doubles_the_time_up_to_the_cap():
    """5, 10, 20, 20, ... seconds."""
    breaker, now_s, waits = tripped(), 0.0, []
    for _ in range(5):
        waits.append(breaker.wait_s(now_s=now_s))
        now_s += waits[-1]
        call(breaker, False, now_s)
    assert waits == [5.0, 10.0, 20.0, 20.0, 20.0]


def test_growth_is_forgotten_after_a_calm_time():
    """An outage next week begins at the shortest time again; one that comes right after a recovery does not."""
    for calm_s, expected in ((1.0, 10.0), (31.0, 5.0)):
        breaker = tripped()
        call(breaker, True, 5.0)
        for _ in range(4):
            call(breaker, False, 5.0 + calm_s)
        assert breaker.wait_s(now_s=5.0 + calm_s) == expected


def test_what_began_before_the_trip_changes_nothing_after_it():
    """Calls under way when it opened neither lengthen nor end the time."""
    breaker = Breaker(QUICK)
    late = [breaker.begin(now_s=0.0) for _ in range(10)]
    for _ in range(4):
        call(breaker, False, 0.0)
    for place, permit in enumerate(late):
        breaker.end(permit, good=place % 2 == 0, now_s=1.0)
    assert breaker.wait_s(now_s=1.0) == 4.0


def test_the_last_upstream_left_is_asked_gently_while_open():
    """Never "never": one call per second here, and its success closes the breaker at once (F02)."""
    breaker = tripped()
    assert breaker.wait_s(now_s=0.5, gentle=True) == 0.5
    assert breaker.wait_s(now_s=1.0, gentle=True) == 0.0
    call(breaker, True, 1.0)
    assert breaker.state(now_s=1.0) is Circuit.CLOSED


def test_a_bad_key_opens_at_the_second_refusal_for_a_minute():
    """One 401 may be the provider's hiccup; two in a row are a bad key."""
    breaker = Breaker(KEY_SETTINGS)
    for good in (True, False, True, False):
        call(breaker, good, 0.0)
    assert breaker.state(now_s=0.0) is Circuit.CLOSED
    call(breaker, False, 0.0)
    assert breaker.wait_s(now_s=0.0) == 60.0


events = st.lists(
    st.tuples(st.sampled_from(["begin", "good", "bad", "nothing", "broke", "reset", "gentle"]), st.floats(0.0, 8.0)),
    max_size=80,
)


@given(events=events)
def test_no_sequence_of_events_breaks_the_machine(events):
    """However calls overlap: a wait is never negative or beyond the cap, half-open lets at most one probe run (gentle
    calls aside), closed means no wait, and there is always a moment at which somebody may ask."""
    breaker, now_s, running, probes = Breaker(QUICK), 0.0, [], 0
    for what, after_s in events:
        now_s += after_s
        if what in ("begin", "gentle"):
            if breaker.wait_s(now_s=now_s, gentle=what == "gentle") > 0:
                continue
            if what == "begin" and breaker.state(now_s=now_s) is Circuit.HALF_OPEN:
                assert not [p for p in running if p.is_probe and p.epoch == breaker._epoch]
            running.append(breaker.begin(now_s=now_s))
            probes += running[-1].is_probe
        elif what == "broke":
            breaker.bad(now_s=now_s)
        elif what == "reset":
            breaker.reset()
            assert breaker.state(now_s=now_s) is Circuit.CLOSED
        elif running:
            good = {"good": True, "bad": False}.get(what)
            breaker.end(running.pop(0), good=good, now_s=now_s)
        wait_s = breaker.wait_s(now_s=now_s)
        assert 0.0 <= wait_s <= QUICK.max_open_s
        assert (breaker.state(now_s=now_s) is not Circuit.CLOSED) or wait_s == 0.0
        assert breaker.wait_s(now_s=now_s, gentle=True) <= max(wait_s, QUICK.gentle_s)
        assert breaker._probing >= 0
    for permit in running:
        breaker.end(permit, good=None, now_s=now_s)
    assert breaker.wait_s(now_s=now_s + QUICK.max_open_s) == 0.0
