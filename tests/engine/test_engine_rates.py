"""The engine's own speed."""

import pytest

from edged.engine.rates import Rates, StepCosts


def observe(rates: Rates, *, prefill: int = 0, rows: int = 0, s: float = 0.1) -> None:
    rates.observe(prefill_tokens=prefill, decode_rows=rows, elapsed_s=s)


def test_nothing_is_known_before_it_is_measured() -> None:
    """No number is made up."""
    rates = Rates()
    assert (rates.prefill_tps, rates.decode_tps) == (None, None)
    observe(rates, prefill=4, rows=0)
    observe(rates, prefill=0, rows=0)
    assert (rates.prefill_tps, rates.decode_tps) == (None, None), "a few prompt tokens measure only overhead"


def test_one_slow_step_does_not_move_a_decision() -> None:
    """Rates are medians."""
    rates = Rates()
    for _ in range(10):
        observe(rates, prefill=100, s=0.1)
        observe(rates, rows=3, s=0.02)
    observe(rates, prefill=100, s=30)
    observe(rates, rows=3, s=30)
    assert rates.prefill_tps == 1000
    assert rates.decode_tps == 50, "decode is the speed of one stream, whatever the batch"


def test_old_steps_are_forgotten() -> None:
    """A box that became slow is known to be slow within a few steps."""
    rates = Rates()
    for s in [0.1] * 50 + [1.0] * 8:
        observe(rates, prefill=100, s=s)
    assert rates.prefill_tps == 100


def test_a_mixed_step_is_charged_to_its_prompt() -> None:
    """A prediction errs to the slow side; the decode rate is read from pure decode steps."""
    rates = Rates()
    observe(rates, prefill=50, rows=3, s=0.1)
    assert (rates.prefill_tps, rates.decode_tps) == (500, None)


def test_a_clock_that_stood_still_measures_nothing() -> None:
    """No division by zero."""
    rates = Rates()
    observe(rates, rows=1, s=0)
    assert rates.decode_tps is None


def test_tokens_that_came_as_guessed_count_in_the_speed_of_decoding() -> None:
    """One stream that got four tokens in 40 ms had ten milliseconds for each."""
    rates = Rates()
    rates.observe(prefill_tokens=0, decode_rows=1, elapsed_s=0.04, accepted_tokens=3)
    assert rates.decode_tps == pytest.approx(100)


def costs_of(*steps: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for rows, elapsed_s in steps:
        costs.observe(rows, elapsed_s, plain=rows == 1)
    return costs


def test_the_cost_of_rows_is_learnt_against_the_steps_around_them() -> None:
    """However fast the box is, and whatever a row costs on it."""
    for one_s in (0.001, 0.1):
        for slope in (0.02, 0.5, 0.9):
            costs = costs_of(*((rows, one_s * (1 + slope * (rows - 1))) for _ in range(40) for rows in (1, 1, 1, 4)))
            assert costs.ratio(4) == pytest.approx(1 + slope * 3, rel=0.1)


def test_a_change_of_pace_is_no_change_of_cost() -> None:
    """A neighbour that comes while only steps of four rows are computed makes all steps slower."""
    costs = costs_of(*[(1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (4, 2.5)] * 5)
    before = costs.ratio(4)
    for _ in range(50):
        costs.observe(4, 5.0, plain=False)
    assert costs.ratio(4) == pytest.approx(before, rel=0.35)


def test_one_stalled_step_hardly_counts() -> None:
    costs = costs_of(*[(1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (3, 2.0)] * 10)
    costs.observe(3, 100.0, plain=False)
    assert costs.ratio(3) < 2.5


def test_unmeasured_numbers_of_rows_lie_on_the_line() -> None:
    """Before anything was measured a row costs half a step; between and beyond measured ones, what those say."""
    assert StepCosts().ratio(5) == 3.0
    costs = costs_of(*[(1, 1.0)] * 5, *[(5, 1.2), (1, 1.0)] * 60)
    assert costs.ratio(3) == pytest.approx(1.1, rel=0.02)
    assert costs.ratio(9) == pytest.approx(1.4, rel=0.02)


def test_another_number_of_threads_starts_a_new_pace() -> None:
    costs = costs_of(*[(1, 1.0)] * 5)
    costs.forget_pace()
    costs.observe(4, 50.0, plain=False)
    assert costs.ratio(4) == StepCosts().ratio(4)
