"""Predictions from the worker's own numbers."""

import pytest
from builders import an_engine_snapshot
from hypothesis import given
from hypothesis import strategies as st

from edged.routing.latency import EXPECTED_ANSWER_TOKENS, predict_total_s, predict_ttft_s


@pytest.mark.parametrize(
    ("engine", "uncached", "expected_s"),
    [
        ({}, 0, 0.0),
        ({}, 50, 0.5),
        ({"queued_prompt_tokens": 200}, 50, 2.5),
        ({"running": 1}, 50, 0.5),
        ({"running": 2}, 50, 0.5 + 6.4),
        ({"running": 2, "waiting": 2}, 50, 0.5 + 12.8),
        ({"running": 2, "decode_tps": None}, 50, 0.5),
        ({"prefill_tps": None}, 50, None),
        ({"prefill_tps": 0.0}, 50, None),
    ],
)
def test_first_token_is_predicted_from_queue_prompt_and_rates(engine, uncached, expected_s):
    """Everyone's prompts in front, then one's own; where all slots are taken, half an expected answer per turn."""
    predicted = predict_ttft_s(an_engine_snapshot(**engine), uncached_tokens=uncached)
    assert predicted == (None if expected_s is None else pytest.approx(expected_s))


def test_the_whole_answer_is_predicted_from_its_length():
    """The length asked for, or the usual one."""
    engine = an_engine_snapshot()
    assert predict_total_s(engine, ttft_s=1.0, answer_tokens=20) == pytest.approx(3.0)
    assert predict_total_s(engine, ttft_s=1.0, answer_tokens=None) == pytest.approx(1 + EXPECTED_ANSWER_TOKENS / 10)
    assert predict_total_s(an_engine_snapshot(decode_tps=None), ttft_s=1.0, answer_tokens=20) is None


@given(
    running=st.integers(0, 4),
    waiting=st.integers(0, 50),
    queued=st.integers(0, 10_000),
    uncached=st.integers(0, 10_000),
    more=st.integers(0, 1_000),
)
def test_more_load_never_predicts_an_earlier_token(running, waiting, queued, uncached, more):
    """Monotone in everything that stands in front."""

    def predict(*, prompt=uncached, **load):
        usual = {"running": running, "waiting": waiting, "queued_prompt_tokens": queued}
        return predict_ttft_s(an_engine_snapshot(**{**usual, **load}), uncached_tokens=prompt)

    base = predict()
    assert base >= 0
    assert predict(prompt=uncached + more) >= base
    assert predict(queued_prompt_tokens=queued + more) >= base
    assert predict(waiting=waiting + more) >= base
    assert predict(running=running + more) >= base
