"""What is noted while a request lives, and the record it becomes."""

import time

import pytest
from builders import a_request

from edged.core import Chunk, Decision, FinishReason, Outcome, Reason, Status, Target, Token, Usage
from edged.dispatch.trace import Trace


def a_trace(**fields):
    return Trace(a_request(**fields), received_at=1_700_000_000.0)


def an_attempt(trace=None, *, target=Target.CLOUD):
    return (trace or a_trace()).attempt(target, backend="cloud", model="big")


@pytest.mark.parametrize(
    ("chunk", "counts"),
    [
        (Chunk(), False),
        (Chunk(usage=Usage(prompt_tokens=3)), False),
        (Chunk(model="big-2026"), False),
        (Chunk(text="a"), True),
        (Chunk(tokens=(Token(b"\xf0", -0.1),)), True),
        (Chunk(finish=FinishReason.STOP), True),
    ],
)
def test_only_something_of_the_answer_is_a_first_token(chunk, counts):
    """Role chunks, keep-alives and counts are none."""
    attempt = an_attempt()
    attempt.see(chunk)
    assert (attempt.first_token_s is not None) is counts


def test_the_first_ending_of_an_attempt_counts():
    """What failed is not cancelled afterwards."""
    attempt = an_attempt()
    attempt.end(Outcome.FAILED, "upstream_busy")
    attempt.end(Outcome.CANCELLED, "client_gone")
    assert (attempt.outcome, attempt.error) == (Outcome.FAILED, "upstream_busy")


def test_a_discarded_draft_may_still_be_served():
    """The one ending that another may replace."""
    attempt = an_attempt(target=Target.LOCAL)
    attempt.end(Outcome.DISCARDED)
    attempt.end(Outcome.SERVED)
    assert attempt.outcome is Outcome.SERVED


def test_a_choice_nobody_asked_for_is_not_counted():
    """An upstream that sends more choices than asked breaks nothing."""
    attempt = an_attempt()
    attempt.see(Chunk(choice=3, text="surplus"))
    assert attempt.all_text == ""


def test_a_record_may_be_asked_for_at_any_time():
    """Half-way it says what is known; it changes nothing."""
    trace = a_trace()
    attempt = an_attempt(trace)
    attempt.see(Chunk(text="half"))
    early = trace.record(Status.OK)
    assert early == trace.record(Status.OK) or early.total_s < trace.record(Status.OK).total_s
    assert attempt.outcome is None
    assert (early.served_by, early.reason) == (Target.NONE, Reason.NO_ROUTE)


def test_the_latest_decision_is_the_reason_and_every_prediction_is_kept():
    """Decisions are stamped with the time since receipt, in order."""
    trace = a_trace()
    for reason, predicted_s in [(Reason.WITHIN_BUDGET, 0.4), (Reason.LOW_CONFIDENCE, None)]:
        trace.decide(Decision(target=Target.LOCAL, reason=reason, stage="review", predicted_ttft_s=predicted_s))
    record = trace.record(Status.OK)
    assert record.reason is Reason.LOW_CONFIDENCE
    assert record.predicted_ttft_s == 0.4
    assert 0 <= record.decisions[0].at_s <= record.decisions[1].at_s


def test_durations_come_from_the_monotonic_clock_and_the_label_from_the_wall():
    """A wrong wall clock changes a label, never a duration."""
    trace = a_trace(received_s=time.monotonic() - 2.0)
    trace.sent()
    record = trace.record(Status.OK)
    assert record.received_at == 1_700_000_000.0
    assert 2.0 <= record.ttft_s <= record.total_s < 30
