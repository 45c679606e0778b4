"""What becomes of a local answer on probation: every numbered rule of ``review``."""

import pytest
from builders import STOP, an_observation, the_terms, tokens
from hypothesis import given
from hypothesis import strategies as st

from edged.core import FinishReason, Reason, Release
from edged.routing.policy import Verdict, next_deadline_s, review, wanted_to_leave

WAIT, KEEP, DEFER = Verdict.WAIT, Verdict.KEEP, Verdict.DEFER
GOOD = tokens(*[0.9] * 4)
BAD = tokens(*[0.01] * 4)


@pytest.mark.parametrize(
    ("seen", "allowed", "expected"),
    [
        pytest.param({"elapsed_s": 1.999}, {}, (WAIT, None), id="1 still in time"),
        pytest.param({"elapsed_s": 2.0}, {}, (DEFER, Reason.TTFT_EXCEEDED), id="1 the deadline itself is late"),
        pytest.param({"elapsed_s": 99, "said": GOOD[:1]}, {}, (WAIT, None), id="1 a token is a token"),
        pytest.param({"said": GOOD[:1], "silence_s": 0.499}, {}, (WAIT, None), id="2 a short gap"),
        pytest.param({"said": GOOD[:1], "silence_s": 0.5}, {}, (DEFER, Reason.ITL_EXCEEDED), id="2 too long a gap"),
        pytest.param({"said": GOOD, "silence_s": 9, "finish": STOP}, {}, (KEEP, None), id="2 silence after the end"),
        pytest.param(
            {"finish": STOP, "has_text": False}, {}, (DEFER, Reason.INVALID_OUTPUT), id="3 finished without text"
        ),
        pytest.param(
            {"said": GOOD, "finish": FinishReason.LENGTH, "cut_short": True},
            {},
            (DEFER, Reason.TRUNCATED),
            id="3 cut short",
        ),
        pytest.param({"said": BAD}, {}, (DEFER, Reason.LOW_CONFIDENCE), id="4 not trusted"),
        pytest.param({"said": BAD[:3]}, {}, (WAIT, None), id="4 not enough to judge"),
        pytest.param({"said": BAD[:1], "finish": STOP}, {}, (DEFER, Reason.LOW_CONFIDENCE), id="4 all there is"),
        pytest.param({"said": BAD}, {"release": Release.STRICT}, (WAIT, None), id="4 strict hears it out"),
        pytest.param(
            {"said": BAD, "finish": STOP},
            {"release": Release.STRICT},
            (DEFER, Reason.LOW_CONFIDENCE),
            id="4 strict judges the whole",
        ),
        pytest.param({"finish": STOP}, {}, (DEFER, Reason.LOW_CONFIDENCE), id="4 text without evidence is not trusted"),
        pytest.param({"said": BAD}, {"confidence": 0.0}, (KEEP, None), id="4 the check is off"),
        pytest.param({"finish": STOP}, {"confidence": 0.0}, (KEEP, None), id="4 off needs no evidence"),
        pytest.param(
            {"said": tokens(1, 1, 1, 1)}, {"confidence": 1.0}, (DEFER, Reason.LOW_CONFIDENCE), id="4 one always defers"
        ),
        pytest.param({"said": GOOD}, {}, (KEEP, None), id="5 enough and trusted"),
        pytest.param({"said": GOOD[:3]}, {}, (WAIT, None), id="6 wait"),
    ],
)
def test_probation_ends_by_the_first_rule_that_matches(seen, allowed, expected):
    """Silence, emptiness, cuts, doubt, trust: in this order."""
    verdict = review(an_observation(**seen), the_terms(**allowed))
    assert (verdict.verdict, verdict.reason) == (expected[0], expected[1] or Reason.WITHIN_BUDGET)


def test_the_slowest_unfinished_choice_decides_when_there_is_enough_to_judge():
    """With several choices, hold_tokens counts for each that is still going on."""
    half = an_observation(said=GOOD, others=[(GOOD[:2], None)])
    assert review(half, the_terms()).verdict is WAIT
    one_done = an_observation(said=GOOD, others=[(GOOD[:2], STOP)])
    assert review(one_done, the_terms()).verdict is KEEP


def test_the_least_confident_choice_decides():
    """One choice nobody trusts is enough to leave."""
    verdict = review(an_observation(said=GOOD, others=[(BAD, None)]), the_terms())
    assert (verdict.verdict, verdict.reason) == (DEFER, Reason.LOW_CONFIDENCE)
    assert verdict.confidence == review(an_observation(said=BAD), the_terms()).confidence


@given(
    said=st.integers(0, 6),
    finished=st.booleans(),
    elapsed_s=st.floats(0, 5),
    silence_s=st.floats(0, 2),
    release=st.sampled_from([Release.STRICT, Release.GUARDED]),
)
def test_waiting_always_has_a_deadline_and_the_deadline_ends_the_waiting(said, finished, elapsed_s, silence_s, release):
    """Where the policy waits there is time left, and once that has passed in silence it no longer waits."""
    allowed = the_terms(release=release)
    now = {"elapsed_s": elapsed_s, "silence_s": silence_s, "said": tokens(*[0.9] * said)}
    seen = an_observation(**now, finish=STOP if finished else None)
    if review(seen, allowed).verdict is not WAIT:
        return
    assert not finished
    left_s = next_deadline_s(seen, allowed)
    assert left_s > 0
    later = {"elapsed_s": elapsed_s + left_s + 1e-9, "silence_s": silence_s + left_s + 1e-9}
    assert review(an_observation(**{**now, **later}), allowed).verdict is DEFER


def test_looking_back_says_whether_a_pinned_answer_would_have_left():
    """An answer kept by its label is marked where its words alone would have deferred it."""
    assert wanted_to_leave(an_observation(said=BAD, finish=STOP), the_terms())
    assert not wanted_to_leave(an_observation(said=GOOD, finish=STOP), the_terms())
