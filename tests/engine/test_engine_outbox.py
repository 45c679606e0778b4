"""Outbox: tokens of fast steps travel together, first and last ones never wait."""

import pytest

from edged.engine.outbox import STREAM_INTERVAL_S, Outbox
from edged.engine.protocol import Emission, StepDone, TokenRow


def an_emission(text, *, request="a", choice=0, finish=None):
    return Emission(request, choice, text, (TokenRow(1, text.encode(), -0.1, 1.0, 0.1, ()),), finish=finish)


@pytest.fixture
def sent():
    return []


@pytest.fixture
def outbox(sent):
    outbox = Outbox(sent.append)
    outbox.add([an_emission("first")], now_s=100.0, urgent=True)
    sent.clear()
    return outbox


def test_steps_that_follow_each_other_fast_are_one_event(outbox, sent):
    """Their texts and tokens are joined in order, per choice."""
    outbox.add([an_emission("x"), an_emission("1", choice=1)], now_s=100.01, urgent=False)
    assert sent == []
    outbox.add([an_emission("y"), an_emission("2", choice=1)], now_s=100.0 + STREAM_INTERVAL_S, urgent=False)
    (event,) = sent
    assert isinstance(event, StepDone)
    assert [(e.choice, e.text, len(e.tokens)) for e in event.emissions] == [(0, "xy", 2), (1, "12", 2)]


def test_slow_steps_are_sent_one_by_one(outbox, sent):
    """Nothing is held where a step takes longer than the interval."""
    for step in range(1, 4):
        outbox.add([an_emission("x")], now_s=100 + step, urgent=False)
    assert len(sent) == 3


def test_a_first_token_takes_everything_with_it_at_once(outbox, sent):
    """Somebody waits for it."""
    outbox.add([an_emission("x")], now_s=100.001, urgent=False)
    outbox.add([an_emission("new", request="b")], now_s=100.002, urgent=True)
    assert [e.id for e in sent[0].emissions] == ["a", "b"]


def test_an_ending_never_waits_and_keeps_what_was_before_it(outbox, sent):
    """The last emission carries counts and finish; the joined one too."""
    outbox.add([an_emission("x")], now_s=100.001, urgent=False)
    outbox.add([an_emission("y", finish="stop")], now_s=100.002, urgent=False)
    assert [(e.text, e.finish) for e in sent[0].emissions] == [("xy", "stop")]


def test_what_is_held_is_flushed_before_a_long_step(outbox, sent):
    """And only once."""
    outbox.add([an_emission("x")], now_s=100.001, urgent=False)
    outbox.flush()
    outbox.flush()
    assert [e.text for event in sent for e in event.emissions] == ["x"]


def test_nothing_held_is_sent_for_a_request_that_ended_otherwise(outbox, sent):
    """Its neighbours keep theirs."""
    outbox.add([an_emission("x"), an_emission("z", request="b")], now_s=100.001, urgent=False)
    outbox.forget("a")
    outbox.flush()
    assert [e.id for event in sent for e in event.emissions] == ["b"]
