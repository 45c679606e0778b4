"""What is expected of upstreams and of the local model, from what was measured of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.routing.pace import MIN_SAMPLES, STALE_S, LocalPace, Prefilled, Recent, UpstreamPace, fitted

DEPTHS = (128, 384, 768, 1024, 1536, 2048, 256, 1792)


def real_cost_s(depth):
    """A token's prefill as measured on a two-core box: 240 tokens/s at depth 256, about 100 at 2048."""
    return 0.0033 + 0.0000031 * depth


def a_pace(*, speed=1.0, slow=(), now_s=0.0):
    """Prompts of 64 tokens at growing depths; those at the places ``slow`` took ten times as long."""
    pace = LocalPace()
    for place, depth in enumerate(DEPTHS):
        seconds = 64 * real_cost_s(depth) / speed * (10 if place in slow else 1)
        pace.note_prompt(start_tokens=depth - 32, tokens=64, prefill_s=seconds, now_s=now_s, speed=speed)
    return pace


def test_an_upstream_nobody_measured_is_what_the_config_says():
    """Cold start."""
    assert UpstreamPace.assuming(ttft_s=0.3, token_s=0.02).outlook(now_s=0.0).ttft_s == 0.3


def test_one_slow_sample_moves_no_expectation():
    """F24: one cold 40 s among warm ones, or alone."""
    recent = Recent(0.3)
    recent.note(40.0, now_s=0.0)
    assert recent.expected(now_s=1.0) == 0.3
    for _ in range(20):
        recent.note(0.5, now_s=1.0)
    assert recent.expected(now_s=2.0) == 0.5


def test_an_upstream_that_is_slow_again_and_again_is_expected_to_be_slow():
    """Two of the fewest samples suffice."""
    recent = Recent(0.3)
    for at_s in (0.0, 1.0):
        recent.note(6.0, now_s=at_s)
    assert recent.expected(now_s=2.0) == 6.0


def test_an_upstream_once_slow_is_tried_again_when_its_samples_are_old():
    """Stale samples count for nothing, so the assumption holds again: no probe is needed."""
    recent = Recent(0.3)
    for _ in range(MIN_SAMPLES):
        recent.note(6.0, now_s=0.0)
    assert recent.expected(now_s=STALE_S) == 6.0
    assert recent.expected(now_s=STALE_S + 1) == 0.3
    assert recent.count(now_s=STALE_S + 1) == 0


@given(st.lists(st.floats(0.01, 100), min_size=MIN_SAMPLES, max_size=40))
def test_an_expectation_lies_among_what_was_measured(values):
    """Never above the slowest, never below the median."""
    recent = Recent(0.3)
    for value in values:
        recent.note(value, now_s=0.0)
    kept = sorted(values[-32:])
    assert kept[(len(kept) - 1) // 2] <= recent.expected(now_s=0.0) <= kept[-1]


def test_prefill_gets_slower_with_depth_and_the_curve_knows():
    """Within a tenth of the truth at depths where nothing was measured, too."""
    curve = a_pace().curve(now_s=1.0)
    for start, tokens in ((0, 512), (1024, 512), (0, 4096), (3000, 100)):
        truth_s = tokens * real_cost_s(start + tokens / 2)
        assert curve.prefill_s(start, tokens) == pytest.approx(truth_s, rel=0.1)


@pytest.mark.parametrize("place", range(len(DEPTHS)))
def test_one_slow_prompt_bends_no_curve(place):
    """Whichever it is."""
    curve = a_pace(slow=(place,)).curve(now_s=1.0)
    assert curve.prefill_s(0, 2048) == pytest.approx(a_pace().curve(now_s=1.0).prefill_s(0, 2048), rel=0.25)


def test_too_few_or_too_old_prompts_make_no_curve():
    """The worker's own rate has to do."""
    assert fitted([Prefilled(0.0, 0, 64, 0.01)] * 5) is None
    assert a_pace(now_s=0.0).curve(now_s=STALE_S + 1) is None


def test_a_curve_never_promises_a_token_for_nothing():
    """Prompts that got faster with depth (noise) give a flat curve, above zero."""
    curve = fitted([Prefilled(0.0, 300 * i, 64, 0.01 / (i + 1)) for i in range(8)])
    assert curve.slope_s == 0.0
    assert curve.prefill_s(0, 100) > 0


def test_what_was_learned_hot_does_not_make_a_cool_box_look_slow():
    """The clock is divided out."""
    hot, cool = a_pace(speed=0.5).curve(now_s=1.0), a_pace().curve(now_s=1.0)
    assert hot.prefill_s(0, 1000) == pytest.approx(cool.prefill_s(0, 1000))


def test_a_bias_needs_samples_and_moves_only_out_of_its_band():
    """Hysteresis: jitter around a threshold flips no decision; a lasting change does."""
    pace = LocalPace()

    def note(ratio, times):
        for _ in range(times):
            pace.note_wait(predicted_s=1.0, measured_s=ratio, now_s=0.0)
        return pace.bias

    assert note(3.0, MIN_SAMPLES - 1) == 1.0
    assert note(3.0, 1) == 3.0
    assert [note(ratio, 15) for ratio in (2.7, 3.0, 2.6)] == [3.0, 3.0, 3.0]
    assert note(1.0, 15) == 1.0
    assert note(1.14, 15) == 1.0
    assert pace.current_bias(now_s=STALE_S + 1) == 1.0


def test_one_late_token_makes_no_bias():
    """The median of the latest."""
    pace = LocalPace()
    for ratio in [1.0] * 10 + [60.0]:
        pace.note_wait(predicted_s=1.0, measured_s=ratio, now_s=0.0)
    assert pace.bias == 1.0


def test_an_impossible_ratio_is_bounded():
    """However wrong predictions were, they are corrected by a factor of three at most."""
    pace = LocalPace()
    for _ in range(15):
        pace.note_wait(predicted_s=0.5, measured_s=60.0, now_s=0.0)
    assert pace.bias == 3.0


def test_a_short_wait_says_nothing_of_a_long_one():
    """A cached prompt is answered in a moment that is all overhead: twenty times the prediction, and no bias."""
    pace = LocalPace()
    for _ in range(15):
        pace.note_wait(predicted_s=0.005, measured_s=0.1, now_s=0.0)
    assert pace.bias == 1.0
