"""A box that learns from the cloud: what may certify, what may fit, and how often a promise may be wrong."""

from dataclasses import replace

import numpy as np

from edged.calibration import learning
from edged.calibration.learning import Aim, Lesson, Progress, is_broken, is_due, is_kept, judged, propose

CLASSES = ("a", "b", "c", "d")
AIM = Aim(alpha=0.1, delta=0.1)


def world(seed: int, count: int, *, spread: float = 0.6, noise: float = 0.0) -> list[Lesson]:
    """Requests around one centre for each class; ``noise`` of the labels are wrong."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(len(CLASSES), 6))
    labels = chance.integers(0, len(CLASSES), count)
    features = centres[labels] + chance.normal(scale=spread, size=(count, 6))
    given = np.where(chance.random(count) < noise, (labels + 1) % len(CLASSES), labels)
    return [Lesson(i, features[i], int(given[i]), is_unbiased=True) for i in range(count)]


def test_an_easy_task_is_taken_over() -> None:
    made = propose(world(1, 300), CLASSES, AIM, Progress())
    assert made.head is not None
    assert made.certificate is not None
    assert made.certificate.bound <= AIM.alpha
    assert made.certificate.coverage > 0.5
    assert made.progress.fresh_from == 300


def test_what_cannot_be_learnt_is_never_promised() -> None:
    """Labels by lot: no threshold is even tried, so no part of delta is spent."""
    lessons = [replace(one, label=int(label)) for one, label in zip(world(2, 400), _lots(400), strict=True)]
    made = propose(lessons, CLASSES, AIM, Progress())
    assert made.head is None
    assert made.progress.attempts == 0
    assert "likely" in made.why


def _lots(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, len(CLASSES), count)


def test_promises_are_broken_in_at_most_delta_of_worlds() -> None:
    """Looking again whenever more labels came, over whole streams of hard worlds with wrong labels."""
    aim, broken, promised = Aim(alpha=0.2, delta=0.1), 0, 0
    for seed in range(8):
        made = _first_promise(world(seed, 200, spread=0.8, noise=0.03), aim)
        if made is None or made.head is None or made.certificate is None:
            continue
        promised += 1
        threshold = made.certificate.threshold
        scores, right = judged(made.head, world(1_000 + seed, 2_000, spread=0.8, noise=0.03))
        served = [is_right for score, is_right in zip(scores, right, strict=True) if score >= threshold]
        broken += served.count(False) > aim.alpha * len(served)
    assert promised >= 5
    assert broken <= 2


def _first_promise(lessons: list[Lesson], aim: Aim) -> learning.Proposal | None:
    progress = Progress()
    for count in range(1, len(lessons) + 1):
        if is_due(progress, count):
            made = propose(lessons[:count], CLASSES, aim, progress)
            progress = made.progress
            if made.head is not None:
                return made
    return None


def test_labels_that_certify_teach_nothing() -> None:
    """Whatever the kept labels say, the head and its confidences are the same."""
    lessons = world(4, 300)
    turned = [replace(one, label=(one.label + 1) % len(CLASSES)) if is_kept(one.number) else one for one in lessons]
    first, second = (propose(these, CLASSES, AIM, Progress()) for these in (lessons, turned))
    assert first.head is not None
    assert second.head is None
    assert second.progress.attempts == 1
    assert "unbiased" in second.why


def test_requests_escalated_for_doubt_certify_nothing() -> None:
    """Only those that were asked whatever the box thought of them; without one there is no promise."""
    lessons = [replace(one, is_unbiased=False) for one in world(5, 400)]
    assert propose(lessons, CLASSES, AIM, Progress()).head is None


def test_a_head_in_use_is_replaced_on_labels_that_came_later() -> None:
    """Nothing from before the take-over certifies again."""
    lessons = world(6, 300)
    first = propose(lessons, CLASSES, AIM, Progress())
    assert first.head is not None
    again = propose(lessons, CLASSES, AIM, first.progress, running=first.head)
    assert again.head is None
    later = [replace(one, number=one.number + 300) for one in world(66, 300)]
    renewed = propose([*lessons, *later], CLASSES, AIM, first.progress, running=first.head)
    assert renewed.head is not None
    assert renewed.progress.head_from == 300
    assert renewed.progress.attempts == first.progress.attempts + 1


def test_after_a_roll_back_the_past_fits_and_certifies_nothing() -> None:
    lessons = world(8, 300)
    after = learning.rolled_back(Progress(attempts=1, fresh_from=0, head_from=0), 300)
    assert propose(lessons, CLASSES, AIM, after).head is None


def test_all_certifications_together_spend_delta() -> None:
    assert sum(learning.share_of_delta(k, 0.1) for k in range(1, 10_000)) <= 0.1


def test_a_promise_that_holds_is_seldom_called_broken_however_often_one_looks() -> None:
    chance, alarms = np.random.default_rng(9), 0
    for _ in range(300):
        wrong = np.cumsum(chance.random(400) < AIM.alpha)
        alarms += any(is_broken(int(wrong[i]), i + 1, AIM) for i in range(0, 400, 5))
    assert alarms <= 0.1 * 300


def test_a_promise_that_is_off_is_called_broken_within_a_hundred_audits() -> None:
    chance, caught = np.random.default_rng(10), 0
    for _ in range(100):
        wrong = np.cumsum(chance.random(100) < 0.35)
        caught += any(is_broken(int(wrong[i]), i + 1, AIM) for i in range(100))
    assert caught >= 95


def test_a_look_waits_for_news() -> None:
    """As many labels as it takes to begin with, then a part more each time."""
    first = learning.FIRST_LOOK_LABELS
    assert not is_due(Progress(), first - 1)
    assert is_due(Progress(), first)
    assert not is_due(Progress(looked_at=1_000), int(1_000 * learning.GROWTH) - 1)
    assert is_due(Progress(looked_at=1_000), int(1_000 * learning.GROWTH) + 1)
