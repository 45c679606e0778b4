"""The engine's own speed."""

from edged.engine.rates import Rates


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
