"""Offline is found quickly, from connections alone, and never from one provider's trouble."""

from hypothesis import given
from hypothesis import strategies as st

from edged.routing.offline import MISSES, Uplink


def test_one_failed_connection_is_a_suspicion():
    """It is probed; nobody is kept from asking yet."""
    uplink = Uplink(["a"])
    uplink.missed("a")
    assert (uplink.suspects, uplink.is_down("a"), uplink.offline) == (("a",), False, False)
    assert uplink.is_open_question
    uplink.missed("a")
    assert not uplink.is_open_question
    assert (uplink.is_down("a"), uplink.offline) == (True, True)


def test_one_upstream_that_is_down_does_not_make_the_box_offline():
    """Its neighbour answers, so the way out is open."""
    uplink = Uplink(["a", "b"])
    for _ in range(10):
        uplink.missed("a")
    assert (uplink.is_down("a"), uplink.is_down("b"), uplink.offline) == (True, False, False)


def test_failures_at_every_upstream_confirm_each_other():
    """Two different hosts that cannot be reached are two witnesses of one cause."""
    uplink = Uplink(["a", "b"])
    uplink.missed("a")
    uplink.missed("b")
    assert uplink.offline
    assert uplink.is_down("a")


def test_one_connection_ends_it():
    """The first host that answers: online, and only the others stay in doubt."""
    uplink = Uplink(["a", "b"])
    for name in ("a", "b", "a", "b"):
        uplink.missed(name)
    uplink.reached("b", now_s=5.0)
    assert (uplink.offline, uplink.is_down("b"), uplink.is_down("a"), uplink.suspects) == (False, False, True, ("a",))


def test_quiet_are_those_not_heard_from():
    """A probe is not wasted on one that answered a moment ago."""
    uplink = Uplink(["a", "b"])
    uplink.reached("a", now_s=10.0)
    assert uplink.quiet(since_s=9.0) == {"b"}
    assert uplink.quiet(since_s=10.0) == {"a", "b"}


def test_a_box_without_upstreams_is_not_offline():
    """It never wanted to leave."""
    assert not Uplink([]).offline


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_whatever_the_order_the_latest_evidence_decides(evidence):
    """Offline means that nobody was reached since their last failure, and at least two failures say so."""
    uplink, last = Uplink("abc"), dict.fromkeys("abc", 0)
    for name, reached in evidence:
        last[name] = 0 if reached else last[name] + 1
        if reached:
            uplink.reached(name, now_s=0.0)
        else:
            uplink.missed(name)
        assert uplink.offline == (all(last.values()) and sum(last.values()) >= MISSES)
        for upstream, misses in last.items():
            assert uplink.is_down(upstream) == (misses >= MISSES or uplink.offline)
