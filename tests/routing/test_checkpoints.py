"""An answer is stopped early only when it is proved that it cannot pass, and never for something slower."""

import math

import pytest
from builders import STOP, a_request, an_engine_snapshot, an_observation, the_terms, tokens
from hypothesis import given
from hypothesis import strategies as st

from edged.core import Locality, Reason, Release, Target, Token
from edged.routing.confidence import free_text_bound, free_text_score, is_looping, structured_bound, structured_score
from edged.routing.latency import Learned
from edged.routing.pace import Curve, Outlook
from edged.routing.policy import Verdict, admit, load_patience_s, review, review_admission, with_patience

logprobs = st.floats(-40, 0) | st.just(math.nan) | st.just(-math.inf)
pieces = st.sampled_from([b"{", b'"a"', b":", b"1", b"tr", b"ue", b'"', b"x", b",", b"}", b"[", b" "])
some_tokens = st.lists(st.builds(Token, pieces, logprobs), max_size=30)


@given(said=some_tokens, more=some_tokens, spare=st.integers(0, 40))
def test_no_continuation_scores_above_the_bound(said, more, spare):
    """The proof, by trying: free text and JSON, any tokens, any length within the limit."""
    most = len(said) + len(more) + spare
    for score, bound in ((free_text_score, free_text_bound), (structured_score, structured_bound)):
        whole = score([*said, *more])
        assert whole is None or whole <= bound(said, most) + 1e-12


def test_a_bound_is_reached():
    """It is not vacuous: with certain tokens from here on, the score is the bound."""
    said = tokens(0.1, 0.2, 0.9)
    assert free_text_score([*said, *tokens(*[1.0] * 13)]) == pytest.approx(free_text_bound(said, 16))


def seen(*probabilities, most=None, **fields):
    return an_observation(said=tokens(*probabilities), settled=True, most_tokens=most, **fields)


def test_an_answer_that_cannot_pass_is_stopped_before_the_hold_is_full():
    """Guarded: four impossible tokens of sixteen; one that may still recover goes on."""
    allowed = the_terms(hold_tokens=16)
    verdict = review(seen(*[0.0] * 4), allowed)
    assert (verdict.verdict, verdict.reason, verdict.early) == (Verdict.DEFER, Reason.LOW_CONFIDENCE, True)
    assert verdict.confidence < allowed.confidence
    assert review(seen(0.1, 0.9, 0.9), allowed).verdict is Verdict.WAIT


def test_strict_looks_to_the_end_of_the_longest_answer():
    """The more may follow, the less is proved; without a limit nothing is."""
    allowed = the_terms(release=Release.STRICT)
    doubted = [1e-6] * 8
    assert review(seen(*doubted, most=12), allowed).verdict is Verdict.DEFER
    assert review(seen(*doubted, most=4000), allowed).verdict is Verdict.DEFER  # the worst window stays
    assert review(seen(*[0.05] * 8, most=4000), allowed).verdict is Verdict.WAIT
    assert review(seen(*doubted), allowed).verdict is Verdict.WAIT


def test_nothing_is_stopped_early_that_may_still_change_its_form_or_is_not_judged():
    """Functions at hand; a threshold of 0."""
    doubted = an_observation(said=tokens(*[0.0] * 3), settled=False, most_tokens=16)
    assert review(doubted, the_terms(hold_tokens=16)).verdict is Verdict.WAIT
    assert review(seen(*[0.0] * 3, most=16), the_terms(hold_tokens=16, confidence=0.0)).verdict is Verdict.WAIT


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=24), st.floats(0.05, 0.95))
def test_stopping_early_changes_no_verdict(probabilities, threshold):
    """Who is stopped at a checkpoint would have been deferred at the end of the hold, whatever came after."""
    allowed = the_terms(hold_tokens=16, confidence=threshold)
    early = review(seen(*probabilities[:15]), allowed)
    padded = [*probabilities[:15], *[1.0] * 16][:16]
    final = review(seen(*padded, finish=STOP), allowed)
    assert early.verdict is not Verdict.DEFER or final.reason is Reason.LOW_CONFIDENCE


def test_a_guarded_verdict_does_not_depend_on_how_tokens_came_together():
    """The first ``hold_tokens`` are judged, even where more came in one step."""
    allowed = the_terms(hold_tokens=4)
    four, nine = review(seen(*[0.9] * 4), allowed), review(seen(*[0.9] * 4, *[0.0] * 5), allowed)
    assert (four.verdict, four.confidence) == (nine.verdict, nine.confidence)


def test_json_that_can_no_longer_become_json_is_stopped():
    """At once, whatever its confidence."""
    broken = an_observation(said=tokens(0.99), structured=frozenset({0}), settled=True, malformed=True)
    verdict = review(broken, the_terms(release=Release.STRICT))
    assert (verdict.reason, verdict.early) == (Reason.INVALID_OUTPUT, True)


def test_a_text_that_goes_in_circles_is_stopped():
    """Four rounds and 64 tokens; a list, a table or JSON with repeated parts is not a circle."""
    allowed = the_terms(release=Release.STRICT, confidence=0.0)

    def say(words, **fields):
        said = [Token(word.encode(), -0.01, id=i) for i, word in enumerate(words)]
        return review(an_observation(said=said, settled=True, **fields), allowed)

    circle = "I am sure that I am".split()  # noqa: SIM905 - a sentence
    assert say(circle * 11).reason is Reason.INVALID_OUTPUT
    assert say(circle * 8).verdict is Verdict.WAIT
    assert say(circle * 11, structured=frozenset({0})).verdict is Verdict.WAIT
    numbered = [word for i in range(40) for word in ("-", str(i), ":", "ok")]
    assert say(numbered).verdict is Verdict.WAIT
    assert not is_looping([])


# -- never to something slower ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cloud_s", "expected"),
    [
        (None, (Target.CLOUD, Reason.TTFT_PREDICTED)),
        (1.0, (Target.CLOUD, Reason.TTFT_PREDICTED)),
        (3.0, (Target.LOCAL, Reason.WITHIN_BUDGET)),
        (9.0, (Target.LOCAL, Reason.WITHIN_BUDGET)),
    ],
)
def test_a_request_leaves_for_latency_only_where_the_cloud_is_faster(cloud_s, expected):
    """Three seconds here against what the cloud takes; the decision says both numbers."""
    outlook = None if cloud_s is None else Outlook(cloud_s)
    allowed = the_terms(ttft_s=2.0, outlook=outlook)
    request = a_request()
    said = review_admission(allowed, an_engine_snapshot(), request, prompt_tokens=300, cached_tokens=0, elapsed_s=0.1)
    assert (said.target, said.reason) == expected
    assert said.predicted_ttft_s == pytest.approx(3.1)
    assert said.cloud_ttft_s == (None if cloud_s is None else pytest.approx(cloud_s + 0.1))


@pytest.mark.parametrize(("token_s", "target"), [(0.01, Target.CLOUD), (0.5, Target.LOCAL)])
def test_a_deadline_is_left_for_only_where_the_cloud_would_be_done_sooner(token_s, target):
    """Ten seconds for a hundred tokens here, against the cloud's own pace."""
    allowed = the_terms(deadline_s=5.0, outlook=Outlook(0.5, token_s))
    request = a_request(max_tokens=100)
    said = review_admission(allowed, an_engine_snapshot(), request, prompt_tokens=10, cached_tokens=0, elapsed_s=0.0)
    assert said.target is target


def test_waiting_is_as_long_as_the_cloud_would_have_taken():
    """Then, and not sooner, the forecast has failed. A cloud faster than the thresholds changes none."""
    slow = with_patience(the_terms(ttft_s=2.0, itl_s=0.5, outlook=Outlook(5.0)), elapsed_s=0.5)
    assert (slow.ttft_s, slow.itl_s) == (5.5, 5.0)
    fast = the_terms(ttft_s=2.0, itl_s=0.5, outlook=Outlook(0.3))
    assert with_patience(fast, elapsed_s=0.5) == fast
    assert load_patience_s(the_terms(ttft_s=2.0, outlook=Outlook(5.0))) == 5.0


def test_an_answer_too_slow_for_its_deadline_leaves_while_it_is_held():
    """Eight tokens in seven seconds, a hundred asked for: it cannot be there in twenty; the cloud can."""
    late = seen(*[0.9] * 8, decode_s=7.0, elapsed_s=8.0, asked_tokens=100)
    allowed = the_terms(release=Release.STRICT, deadline_s=20.0)
    assert review(late, allowed).reason is Reason.DEADLINE_PREDICTED
    assert review(late, the_terms(release=Release.STRICT, deadline_s=101.0)).verdict is Verdict.WAIT
    slower = the_terms(release=Release.STRICT, deadline_s=20.0, outlook=Outlook(5.0, 2.0))
    assert review(late, slower).verdict is Verdict.WAIT
    few = seen(*[0.9] * 7, decode_s=7.0, elapsed_s=8.0, asked_tokens=100)
    assert review(few, allowed).verdict is Verdict.WAIT


def test_a_curve_goes_before_the_single_rate_and_heat_and_bias_stretch_it():
    """1,000 tokens at 4 ms, half speed, and a bias of 1.5."""
    learned = Learned(Curve(0.004, 0.0), bias=1.5, speed=0.5)
    said = review_admission(
        the_terms(learned=learned),
        an_engine_snapshot(),
        a_request(),
        prompt_tokens=1000,
        cached_tokens=0,
        elapsed_s=0.0,
    )
    assert said.predicted_ttft_s == pytest.approx(1000 * 0.004 / 0.5 * 1.5)
    assert said.speed == 0.5


def test_a_conversation_at_home_in_the_cloud_stays_there_where_it_may():
    """Before load and latency, after what no local model can do; a label is stronger."""

    engine = an_engine_snapshot()
    home = admit(the_terms(keeps_author=True), engine, in_flight=0)
    assert (home.target, home.reason) == (Target.CLOUD, Reason.KEPT_AUTHOR)
    kept = admit(the_terms(keeps_author=True, locality=Locality.LOCAL_ONLY), engine, in_flight=0)
    assert (kept.target, kept.reason) == (Target.LOCAL, Reason.PINNED_LOCAL)
