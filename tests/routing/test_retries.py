"""Retries are a share of the requests plus a floor, in every minute."""

import random

import pytest

from edged.routing.retries import WINDOW_S, RetryBudget


def test_without_requests_the_floor_is_all_there_is():
    """Ten a minute, then none until the minute has passed."""
    budget = RetryBudget(share=0.2, floor_per_minute=10)
    assert [budget.take(now_s=1.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not budget.take(now_s=60.5)
    assert budget.take(now_s=61.5)
    assert (budget.taken, budget.refused) == (11, 3)


def test_requests_earn_their_share():
    """A hundred requests allow twenty retries beside the floor."""
    budget = RetryBudget(share=0.2, floor_per_minute=10)
    for _ in range(100):
        budget.request(now_s=0.0)
    assert sum(budget.take(now_s=0.0) for _ in range(100)) == 30


def test_nothing_allowed_is_nothing_allowed():
    """share = 0 and a floor of 0: no upstream is asked after the first."""
    budget = RetryBudget(share=0.0, floor_per_minute=0)
    budget.request(now_s=0.0)
    assert not budget.take(now_s=0.0)


@pytest.mark.parametrize("seed", range(8))
def test_in_no_minute_is_the_budget_exceeded(seed):
    """Random traffic with random failures: calls <= requests x (1 + share) + floor for every minute of it."""
    rng = random.Random(seed)
    share, floor = rng.choice([0.0, 0.1, 0.2, 1.0]), rng.choice([0, 3, 10])
    budget, now_s, requests, retries = RetryBudget(share=share, floor_per_minute=floor), 0.0, [], []
    for _ in range(600):
        now_s += rng.choice([0.0, 0.0, 0.01, 0.5, 3.0])
        budget.request(now_s=now_s)
        requests.append(now_s)
        for _ in range(rng.choice([0, 1, 3])):
            if not budget.take(now_s=now_s):
                break
            retries.append(now_s)
    assert retries or not (share or floor)
    for end_s in retries:
        in_window = sum(end_s - WINDOW_S + 1 < at_s <= end_s for at_s in retries)
        assert in_window <= share * sum(end_s - WINDOW_S - 1 < at_s <= end_s for at_s in requests) + floor
