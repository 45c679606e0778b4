"""A day's allowance: reserved before a call, settled after it."""

from hypothesis import given
from hypothesis import strategies as st

from edged.routing.budget import Budget

steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 60)),
        st.tuples(st.just("settle"), st.integers(0, 60)),
        st.tuples(st.just("clock"), st.integers(-5, 5)),
    ),
    max_size=60,
)


@given(limit=st.integers(0, 200), script=steps)
def test_spend_within_reservations_never_passes_the_limit(limit, script):
    """Whatever is reserved, settled and done to the clock in whatever order: nothing is spent beyond the limit, and a
    day that was already counted is never opened again."""
    budget, day, newest, reserved, spent_today = Budget(limit, day=100), 100, 100, [], 0
    for kind, value in script:
        if kind == "clock":
            day += value
        elif kind == "settle" and reserved:
            amount = reserved.pop()
            budget.settle(amount, min(value, amount))
            spent_today += min(value, amount)
        elif kind == "reserve" and budget.reserve(value, day=day):
            if day > newest:
                newest, spent_today = day, 0
            reserved.append(value)
        if kind == "reserve":
            if day > newest:
                newest, spent_today = day, 0
            assert spent_today + sum(reserved) <= limit
        assert budget.reserved_uusd == sum(reserved)
        assert budget.spent_uusd + budget.reserved_uusd <= max(limit, spent_today + sum(reserved))


def test_a_call_that_cost_more_than_reserved_ends_the_spending():
    """A provider may charge more than the worst case foresaw: once, by that one call."""
    budget = Budget(100)
    assert budget.reserve(90, day=0)
    budget.settle(90, 130)
    assert budget.spent_uusd == 130
    assert not budget.reserve(1, day=0)


def test_two_calls_at_once_share_the_rest():
    """What one has reserved the other cannot reserve."""
    budget = Budget(100)
    assert budget.reserve(60, day=0)
    assert not budget.reserve(41, day=0)
    assert budget.reserve(40, day=0)


def test_a_new_day_starts_with_nothing_spent_but_keeps_what_is_still_reserved():
    """Midnight does not forget the calls under way."""
    budget = Budget(100, day=7, spent_uusd=100)
    assert not budget.reserve(1, day=7)
    assert budget.reserve(100, day=8)
    assert not budget.reserve(1, day=9)


def test_a_clock_that_steps_back_opens_nothing():
    """Yesterday's date, a year ago or 1970: the spent budget stays spent."""
    budget = Budget(100, day=20_000, spent_uusd=100)
    for day in (19_999, 19_635, 0, 20_000):
        assert not budget.reserve(1, day=day)


def test_without_a_limit_everything_is_allowed_and_counted():
    """Unlimited is not unmeasured."""
    budget = Budget(None)
    assert budget.reserve(10**12, day=0)
    budget.settle(10**12, 5)
    assert (budget.spent_uusd, budget.reserved_uusd) == (5, 0)


def test_no_allowance_allows_only_what_is_free():
    """``usd_per_day = 0`` is no cloud spend."""
    assert not Budget(0).reserve(1, day=0)
    assert Budget(0).reserve(0, day=0)
