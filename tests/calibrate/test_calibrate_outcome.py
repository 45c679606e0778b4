"""Fitting and certifying: the test half teaches nothing, the stated error holds, the sentence is plain."""

import re
from dataclasses import replace

import numpy as np
import pytest
from calibrate_builders import ABOUT, FIVE_PERCENT, OPTIONS, answered, of_scored, scored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.calibrate import outcome
from edged.calibrate.levels import choose_answered, choose_scored
from edged.calibrate.outcome import Target, percent, share_threshold
from edged.calibration.artefact import LabelSource, Level
from edged.calibration.certificate import grid
from edged.calibration.heads import HeadUnusable

NO_LABELS = Target(max_error=None, cloud_share=0.3, delta=0.1)


def parts(found):
    """What was fitted."""
    artefact = found.artefact
    return artefact.level, artefact.prior, repr(artefact.head), repr(artefact.knots_x), repr(artefact.knots_y)


@pytest.fixture
def fitted_once(monkeypatch):
    """The fitting half is looked at once: what a test changes lies in the other half."""
    choice = choose_scored(scored(60), OPTIONS)
    monkeypatch.setattr(outcome.levels, "choose_scored", lambda items, classes: choice)


def test_what_is_fitted_does_not_depend_on_the_labels_of_the_test_half():
    """All of them changed: the same level, head and map."""
    fitting, certifying = scored(60), scored(60, seed=1)
    other = [replace(item, label=(item.label + 1) % 3) for item in certifying]
    assert parts(of_scored(fitting, certifying)) == parts(of_scored(fitting, other))


@given(st.lists(st.integers(0, 2), min_size=60, max_size=60))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_threshold_depends_on_the_labels_of_the_test_half(fitted_once, labels):
    """Whatever they are: one for a share is the same, a certified one is among those fixed before."""
    certifying = scored(60, seed=1)
    other = [replace(item, label=label) for item, label in zip(certifying, labels, strict=True)]
    one, two = of_scored(scored(60), certifying, NO_LABELS), of_scored(scored(60), other, NO_LABELS)
    assert one.artefact.threshold == two.artefact.threshold
    certified = of_scored(scored(60), other, Target(max_error=0.4, cloud_share=None, delta=0.4)).artefact
    assert certified.threshold in (None, *grid([item.confidence for item in one.judged]))


def test_a_good_model_is_certified_and_says_so_in_one_sentence():
    """The prior takes a liking off; what is served keeps the error on other items too."""
    found = of_scored(scored(150), scored(150, seed=1))
    certificate = found.artefact.certificate
    assert re.fullmatch(r"serves \d+ % locally with at most 5 % error, confidence 90 %", found.sentence)
    assert (certificate.alpha, certificate.delta) == (0.05, 0.1)
    assert certificate.bound <= 0.05
    assert found.served_share == certificate.coverage > 0.5
    assert found.artefact.note == found.sentence
    fresh = scored(3000, seed=2)
    judged = [(found.artefact.judge(item.logprobs), item.label) for item in fresh]
    served = [
        (judgement.choice == label) for judgement, label in judged if judgement.confidence >= certificate.threshold
    ]
    assert served.count(False) / len(served) <= 0.05


def test_a_model_that_guesses_is_uncertified_and_no_number_of_labels_would_help():
    """Everything goes to the cloud."""
    found = of_scored(scored(150, skill=0.0), scored(150, seed=1, skill=0.0))
    assert found.sentence == "uncertified: this model cannot do this task; everything goes to the cloud"
    assert (found.artefact.threshold, found.artefact.certificate, found.labels_needed) == (None, None, None)
    assert found.most_share < 0.5
    assert found.served == ()


def test_too_few_labels_of_a_good_model_say_how_many_might_do():
    """And so many do."""
    found = of_scored(scored(40), scored(40, seed=1))
    said = re.fullmatch(
        r"uncertified: 80 labels are too few for at most 5 % error, confidence 90 % \(about (\d+) might do\); "
        "everything goes to the cloud",
        found.sentence,
    )
    half = int(said[1]) // 2
    assert 80 < half < 250
    assert of_scored(scored(half, seed=3), scored(half, seed=4)).artefact.certificate is not None


def test_the_stated_error_is_broken_no_more_often_than_stated(monkeypatch):
    """40 worlds, each certified on 150 items and judged on 3,000 others: at most 1 in 10 breaks 10 %, give or take."""
    target, broken, certified = Target(max_error=0.1, cloud_share=None, delta=0.1), 0, 0
    monkeypatch.setattr(outcome, "labels_needed", lambda choice, target: None)  # slow, and not what this is about
    for seed in range(40):
        found = outcome.of_answered(
            answered(60, seed=seed), answered(150, seed=1000 + seed), target=target, about=ABOUT
        )
        if found.artefact.threshold is None:
            continue
        certified += 1
        fresh = [(found.artefact.judge_answer(i.score), i.right) for i in answered(3000, seed=2000 + seed)]
        served = [right for confidence, right in fresh if confidence >= found.artefact.threshold]
        broken += served.count(False) / len(served) > 0.1
    assert certified > 14
    assert broken <= 4


def test_a_share_for_the_cloud_is_kept_and_its_error_is_measured_not_promised():
    """No certificate, but the exact bound of a threshold that no label chose."""
    found = of_scored(scored(100), scored(100, seed=1), NO_LABELS)
    assert found.served_share == pytest.approx(0.7, abs=0.01)
    assert found.artefact.certificate is None
    assert re.fullmatch(
        r"sends 30 % to the cloud; \d+ of the 70 it served in the test are wrong, at most [\d.]+ % in the long run, "
        "confidence 90 %",
        found.sentence,
    )
    assert share_threshold([0.1, 0.2], 0.999) is None
    assert share_threshold([0.1, 0.2], 0.5) == 0.2


def test_labels_of_the_cloud_are_said_as_such():
    """Agreement is all they show."""
    about = replace(ABOUT, source=LabelSource.CLOUD)
    found = outcome.of_scored(scored(150), scored(150, seed=1), classes=OPTIONS, target=FIVE_PERCENT, about=about)
    assert "with at most 5 % disagreement with the cloud" in found.sentence
    bad = outcome.of_scored(
        scored(100, skill=0), scored(100, seed=1, skill=0), classes=OPTIONS, target=FIVE_PERCENT, about=about
    )
    assert (
        bad.sentence
        == "uncertified: this model does not agree with the cloud on this task; everything goes to the cloud"
    )


def test_a_level_must_win_beyond_its_noise():
    """Where the zero-shot score is as good as can be no head is used; where the options' scores mislead one is."""
    assert choose_scored(scored(150, skill=6.0), OPTIONS).level in (Level.ZERO_SHOT, Level.MAP)
    swapped = [replace(item, label=(item.label + 1) % 3) for item in scored(150)]
    assert choose_scored(swapped, OPTIONS).level is Level.FEATURES
    tried = {tried.level: tried for tried in choose_scored(swapped, OPTIONS).tried}
    assert tried[Level.FEATURES].gain_low > 0
    assert tried[Level.HIDDEN].problem == "the model gave no hidden state"


def test_a_hidden_state_that_knows_the_answer_is_used():
    """Options whose scores know nothing, and a state that does."""

    def with_state(items, seed):
        rng = np.random.default_rng(seed)
        states = [(np.eye(3)[item.label] + rng.normal(0, 0.2, 3)).astype("<f2").tobytes() for item in items]
        return [replace(item, state=state) for item, state in zip(items, states, strict=True)]

    fitting, certifying = with_state(scored(120, skill=0.3), 1), with_state(scored(120, seed=1, skill=0.3), 2)
    found = of_scored(fitting, certifying)
    assert found.artefact.level is Level.HIDDEN
    assert found.artefact.wants_state
    assert found.artefact.accuracy > 0.95
    with pytest.raises(HeadUnusable):
        found.artefact.judge(certifying[0].logprobs, None)


def test_answers_that_are_all_right_or_all_wrong_leave_nothing_to_fit():
    """Said; the zero-shot score stands, and a perfect model is served whole."""
    right = [replace(item, right=True) for item in answered(100)]
    choice = choose_answered(right)
    assert choice.level is Level.ZERO_SHOT
    assert choice.tried[1].problem == "0 of 100 answers are wrong: there is nothing to tell apart"
    found = outcome.of_answered(right, right, target=FIVE_PERCENT, about=ABOUT)
    assert found.sentence == "serves 100 % locally with at most 5 % error, confidence 90 %"


@pytest.mark.parametrize(
    ("share", "text"), [(0.72, "72 %"), (0.05, "5 %"), (0.021, "2.1 %"), (0.0, "0 %"), (1.0, "100 %"), (0.0996, "10 %")]
)
def test_shares_are_said_with_two_digits(share, text):
    """Where there are two."""
    assert percent(share) == text
