"""Hedging, the pure part: when, how often, and who wins."""

from hypothesis import given
from hypothesis import strategies as st

from edged.routing.hedge import MIN_SAMPLES, WINDOW_REQUESTS, HedgeBudget, Side, Tail, Winner, winner


def test_an_accepted_local_answer_wins_even_a_tie():
    """It costs nothing; at most one side is ever the winner."""
    assert winner(Side.ACCEPTED, Side.ACCEPTED) is Winner.LOCAL
    assert winner(Side.RUNNING, Side.ACCEPTED) is Winner.CLOUD
    assert winner(Side.LOST, Side.RUNNING) is Winner.OPEN
    assert winner(Side.RUNNING, Side.LOST) is Winner.OPEN
    assert winner(Side.LOST, Side.LOST) is Winner.NOBODY


@given(share=st.floats(0, 1), wants=st.lists(st.booleans(), max_size=400))
def test_hedges_never_exceed_their_share_of_the_requests(share, wants):
    """Whatever the order of requests and wishes, from the first request on."""
    budget, hedges = HedgeBudget(share), 0
    for asked, wish in enumerate(wants, 1):
        budget.earn()
        hedges += wish and budget.spend()
        assert hedges <= share * asked + 1e-6


def test_a_quiet_time_saves_no_storm():
    """However long nobody needed a hedge, no more than a window's share follows at once."""
    budget = HedgeBudget(0.05)
    for _ in range(100 * WINDOW_REQUESTS):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == 0.05 * WINDOW_REQUESTS


def test_a_hedge_becomes_affordable_at_the_twentieth_of_twenty_requests():
    """Rounding takes none away."""
    budget = HedgeBudget(0.05)
    for _ in range(20):
        assert not budget.spend()
        budget.earn()
    assert budget.spend()


def test_the_tail_is_unknown_until_enough_was_measured_and_one_slow_sample_hardly_moves_it():
    """p95 of the latest samples, by nearest rank."""
    tail = Tail()
    for _ in range(MIN_SAMPLES - 1):
        tail.note(0.1)
    assert tail.p95_s is None
    tail.note(60.0)
    assert tail.p95_s == 0.1
    tail.note(60.0)
    tail.note(60.0)
    assert tail.p95_s == 60.0
