"""explain tells what was decided, each number against its threshold, and what was wasted."""

import pytest
from ledger_builders import NOON, a_decision, a_record, an_attempt

from edged.core import Outcome, Reason, Status, Target, Timings
from edged.ledger import story
from edged.ledger.story import dollars, seconds, when


def told(**fields: object) -> str:
    return "\n".join(story(a_record(**fields)))


def test_an_escalation_is_told_from_start_to_end() -> None:
    """The whole story of a request that went local, was not trusted, and was answered by the cloud's second try."""
    text = told(
        served_by=Target.CLOUD,
        served_model="big-model",
        reason=Reason.LOW_CONFIDENCE,
        stream=True,
        task="intents",
        ttft_s=0.9,
        total_s=2.5,
        timings=Timings(queue_s=0.01, prefill_s=0.2, decode_s=0.1),
        decisions=(
            a_decision(predicted_ttft_s=0.3, threshold=2.0),
            a_decision(
                target=Target.CLOUD,
                reason=Reason.LOW_CONFIDENCE,
                stage="probation",
                at_s=0.31,
                confidence=0.41,
                threshold=0.5,
            ),
        ),
        attempts=(
            an_attempt(outcome=Outcome.DISCARDED, completion_tokens=16, ttft_s=0.2, total_s=0.31, confidence=0.41),
            an_attempt(
                target=Target.CLOUD,
                backend="cloud",
                model="big-model",
                outcome=Outcome.FAILED,
                started_s=0.31,
                completion_tokens=0,
                error="HTTP 503",
            ),
            an_attempt(
                target=Target.CLOUD,
                backend="spare",
                model="big-model",
                started_s=0.4,
                ttft_s=0.5,
                total_s=2.1,
                cost_uusd=42,
                cost_estimated=True,
            ),
        ),
    )
    assert text.splitlines() == [
        "Request req-1",
        '  2026-09-21 14:13:20 UTC, asked for "auto" over openai (route auto, task intents, locality any, streamed)',
        "",
        "Decisions",
        "      0 ms  admission: go local, because within_budget",
        "            predicted time to first token 300 ms, below the threshold 2 s",
        "    310 ms  probation: go cloud, because low_confidence",
        "            confidence 0.410, below the threshold 0.5",
        "",
        "Attempts",
        "      0 ms  engine/smollm2-135m (local): thrown away",
        "            first token after 200 ms, 310 ms in all",
        "            3 prompt tokens, 16 completion tokens",
        "            confidence 0.410",
        "    310 ms  cloud/big-model (cloud): failed",
        "            no token came, 1.00 s in all",
        "            3 prompt tokens, 0 completion tokens",
        "            error: HTTP 503",
        "    400 ms  spare/big-model (cloud): served",
        "            first token after 500 ms, 2.10 s in all",
        "            3 prompt tokens, 5 completion tokens",
        "            cost $0.000042 (estimated)",
        "",
        "Result",
        "  answered by cloud, model big-model: low_confidence",
        "  first token sent after 900 ms, 2.50 s in all",
        "  the local first token came 100 ms sooner than predicted",
        "  engine time: queue 10 ms, prefill 200 ms, decode 100 ms",
        "  cost $0.000042",
        "  16 completion tokens were thrown away",
    ]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"reason": Reason.TTFT_PREDICTED, "predicted_ttft_s": 3.0, "threshold": 2.0},
            "3.00 s, above the threshold 2 s",
        ),
        (
            {"reason": Reason.WITHIN_BUDGET, "predicted_ttft_s": 3.0, "confidence": 0.5, "threshold": 0.5},
            "0.500, equal to the threshold 0.5",
        ),
        ({"reason": Reason.LOW_CONFIDENCE, "confidence": 0.1, "threshold": 0.5}, "0.100, below the threshold 0.5"),
        ({"reason": Reason.LOW_CONFIDENCE, "threshold": 0.5}, "no confidence to set against 0.5"),
        ({"reason": Reason.WITHIN_BUDGET, "confidence": 0.1, "threshold": 0.0}, "(not judged: the threshold is 0)"),
        ({"reason": Reason.QUEUE_FULL, "threshold": 8.0}, "the limit was 8"),
        ({"reason": Reason.TTFT_EXCEEDED, "threshold": 2.0}, "no token came within the threshold of 2.00 s"),
        (
            {"reason": Reason.ITL_EXCEEDED, "confidence": 0.9, "threshold": 0.5},
            "the silence between two tokens reached the threshold of 500 ms\n            confidence 0.900",
        ),
        (
            {"reason": Reason.DEADLINE_PREDICTED, "predicted_ttft_s": 0.3, "threshold": 4.0},
            "the whole answer would come after the deadline of 4.00 s\n            predicted time to first token 300",
        ),
        ({"reason": Reason.PINNED_LOCAL}, "because pinned_local"),
        ({"reason": Reason.LOW_CONFIDENCE, "stage": "offline"}, "offline: none of its upstreams can be reached"),
        ({"reason": Reason.LOW_CONFIDENCE, "stage": "retry_budget"}, "no further call: the retry budget is spent"),
    ],
)
def test_each_number_stands_beside_its_own_threshold(fields: dict, line: str) -> None:
    """The threshold is compared with the number it limits, never with the other one."""
    text = told(decisions=(a_decision(**fields),))
    assert line in text
    assert text.count("threshold") == line.count("threshold")


def test_a_rejected_request_says_that_nobody_was_asked() -> None:
    """No attempt and no decision is part of the story, with the error the client got."""
    text = told(
        status=Status.REJECTED,
        served_by=Target.NONE,
        reason=Reason.REJECTED_BUSY,
        decisions=(),
        attempts=(),
        error="the queue is full",
    )
    for line in ("none was recorded", "nobody was asked", "rejected: rejected_busy", "error: the queue is full"):
        assert line in text
    assert "no token was sent" in text


def test_stored_text_is_shown() -> None:
    """Where the operator chose to store text, explain shows it."""
    text = told(prompt_text="line 1\nline 2", answer_text="yes")
    assert "Prompt\n  line 1\n  line 2\n\nAnswer\n  yes" in text


def test_numbers_are_written_for_people() -> None:
    """Milliseconds below a second, small money not rounded away, an impossible clock no crash."""
    assert [seconds(None), seconds(0.0004), seconds(0.34), seconds(2.414)] == ["-", "0 ms", "340 ms", "2.41 s"]
    assert [dollars(0), dollars(1), dollars(1_500_000), dollars(2_000_000)] == ["$0", "$0.000001", "$1.5", "$2"]
    assert when(NOON) == "2026-09-21 14:13:20 UTC"
    assert "impossible" in when(1e30)


def test_questions_that_box_and_cloud_answered_together_are_told_as_such() -> None:
    """The request is the cloud's, and the box's share is not forgotten."""
    text = told(
        api="systemone",
        served_by=Target.CLOUD,
        served_model="cloud/big",
        reason=Reason.LOW_CONFIDENCE,
        attempts=(an_attempt(backend="small", model="small"), an_attempt(target=Target.CLOUD, backend="cloud")),
    )
    assert "answered by cloud, model cloud/big, some of the questions by small: low_confidence" in text
