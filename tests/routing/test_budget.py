"""A day's allowance: reserved before a call in every budget it concerns, settled after it."""

from hypothesis import given
from hypothesis import strategies as st

from edged.core import BudgetSnapshot, Scope
from edged.routing.budget import EVERYBODY, Account, Budgets

AUTO, KITCHEN = Account(Scope.ROUTE, "auto"), Account(Scope.KEY, "kitchen")
ALL = (EVERYBODY, AUTO, KITCHEN)
limits = st.one_of(st.none(), st.integers(0, 200))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 60), st.sets(st.sampled_from(ALL), min_size=1)),
        st.tuples(st.just("settle"), st.integers(0, 60), st.just(set())),
        st.tuples(st.just("day"), st.just(0), st.just(set())),
    ),
    max_size=60,
)


def budgets(everybody=None, auto=None, kitchen=None):
    return Budgets({EVERYBODY: everybody, AUTO: auto, KITCHEN: kitchen})


@given(everybody=limits, auto=limits, kitchen=limits, script=steps)
def test_spend_within_reservations_never_passes_any_limit(everybody, auto, kitchen, script):
    """Whatever is reserved and settled in whatever order: no budget's spent and promised money exceeds its limit, and
    what one budget refuses takes nothing from the others."""
    kept, held = budgets(everybody, auto, kitchen), []
    allowed = dict(zip(ALL, (everybody, auto, kitchen), strict=True))
    spent, promised = dict.fromkeys(ALL, 0), dict.fromkeys(ALL, 0)
    for kind, amount, names in script:
        accounts = tuple(sorted(names, key=str))
        if kind == "day":
            kept.new_day()
            spent = dict.fromkeys(ALL, 0)
        elif kind == "settle" and held:
            accounts, reserved = held.pop()
            kept.settle(accounts, reserved, min(amount, reserved), estimated=False)
            for account in accounts:
                promised[account] -= reserved
                spent[account] += min(amount, reserved)
        elif kind == "reserve" and kept.reserve(accounts, amount) is None:
            held.append((accounts, amount))
            for account in accounts:
                promised[account] += amount
                assert allowed[account] is None or spent[account] + promised[account] <= allowed[account]
        for account in ALL:
            assert (kept[account].spent_uusd, kept[account].reserved_uusd) == (spent[account], promised[account])


def test_the_budget_that_is_full_is_named():
    """So that the client hears whose it is."""
    kept = budgets(everybody=100, auto=50, kitchen=60)
    assert kept.reserve(ALL, 51) == AUTO
    assert kept.reserve((EVERYBODY, KITCHEN), 51) is None
    assert kept.reserve((EVERYBODY, AUTO), 50) == EVERYBODY


def test_a_call_that_cost_more_than_reserved_ends_the_spending():
    """A provider may charge more than the worst case foresaw: once, by that one call."""
    kept = budgets(everybody=100)
    assert kept.reserve(ALL, 90) is None
    kept.settle(ALL, 90, 130, estimated=False)
    assert kept[EVERYBODY].spent_uusd == 130
    assert kept.reserve(ALL, 1) == EVERYBODY
    assert kept.reserve(ALL, 0) is None  # a model that costs nothing


def test_a_new_day_starts_with_nothing_spent_but_keeps_what_is_still_reserved():
    """Midnight does not forget the calls under way."""
    kept = budgets(everybody=100)
    kept.reserve(ALL, 60)
    kept.settle(ALL, 0, 40, estimated=True)
    kept.new_day()
    assert (kept[EVERYBODY].spent_uusd, kept[EVERYBODY].estimated_uusd, kept[EVERYBODY].reserved_uusd) == (0, 0, 60)
    assert kept.reserve(ALL, 41) == EVERYBODY


def test_a_limit_of_nothing_allows_only_what_is_free():
    """0 is a limit; none is not."""
    kept = budgets(auto=0)
    assert kept.reserve((AUTO,), 1) == AUTO
    assert kept.reserve((AUTO,), 0) is None
    assert kept.reserve((KITCHEN,), 10**12) is None
    assert kept.is_limited(ALL)
    assert not kept.is_limited((EVERYBODY, KITCHEN))


def test_what_an_earlier_run_spent_is_taken_over_by_those_who_are_still_there():
    """A route that has been removed is forgotten."""
    kept = budgets(auto=100)
    for name in ("auto", "gone"):
        kept.restore(BudgetSnapshot(scope=Scope.ROUTE, name=name, limit_uusd=None, spent_uusd=70, estimated_uusd=7))
    auto = kept.snapshot((AUTO,))[0]
    assert (auto.limit_uusd, auto.spent_uusd, auto.estimated_uusd, auto.remaining_uusd) == (100, 70, 7, 30)
    assert len(kept.snapshot()) == len(ALL)


def test_unknown_spend_leaves_nothing_where_there_is_a_limit():
    """Fails closed; what has no limit has nothing to protect."""
    kept = budgets(auto=100)
    kept.exhaust()
    assert kept.reserve((AUTO,), 1) == AUTO
    assert kept.reserve((EVERYBODY, KITCHEN), 1) is None
