"""From the cloud's answers to a head of the box's own, certified again and again without the statement wearing out.

What is stated is agreement with whoever gave the labels. Where that is the cloud, the true error of local answers is
at most the stated one plus the cloud's own.

Three rules make the statement hold, whatever happens in between:

1. *The sample is unbiased.* A head is certified on requests that were labelled whatever the box thought of them: all of
   those that came while nothing was served locally, later only those that the audit lot fell on. Requests that were
   escalated because the box was unsure are for fitting alone.
2. *Nothing certifies what it taught.* While nothing runs, every second request is kept for certifying. Once a head
   runs, what is escalated depends on its threshold, and so on the very items that certified it. Therefore a new head
   is certified only by what came after the last one took over.
3. *Every look at certifying labels costs.* The k-th certification of a task spends delta / (k (k + 1)) of its delta;
   all of them together spend no more than delta. Whether to look, and at which thresholds in which order, is decided by
   the fitting items and by how many certifying ones there are, never by their labels.

So with probability 1 - delta *every* certificate that a task ever gets holds, for traffic that stays as it is. Whether
it does is watched by a test that may be looked at after every audit (``is_broken``).

Sources: fixed-sequence testing as in Angelopoulos et al., "Learn then Test" (2021), the order of hypotheses found on
other data as in Laufer-Goldshtein et al., "Efficiently controlling multiple risks with Pareto testing" (2023);
Clopper-Pearson bounds; spending of delta over looks as in Lan and DeMets (1983).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edged import binomial
from edged.calibration import fitting, metrics
from edged.calibration.certificate import Certificate, grid, upper_bound
from edged.calibration.heads import Head, Matrix, Vector, softmax

FIRST_LOOK_LABELS = 60
GROWTH = 1.1
"""A look at the data follows when there is so much more of it."""

WORTHWHILE_SHARE = 0.6
"""A head takes over where it is likely to serve so much of what it could if its errors were known exactly."""
PATIENCE_LABELS = 1_500
"""With so many labels anything that is likely to be certified is worth having."""
_LIKELY = 0.6
"""How likely a certification must be to succeed to be worth its part of delta."""
_FEWEST_CLASSES = 2

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lesson:
    """One labelled request. ``number`` counts a task's requests upwards and is never given twice.

    ``is_unbiased``: the cloud was asked whatever the box thought of it: nothing was served locally at the time, or the
    audit lot fell on it (whoever served it).
    """

    number: int
    features: Vector
    label: int
    is_unbiased: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What must be remembered of a task from one fit to the next, and over restarts. Numbers alone.

    ``attempts`` certifications were tried. ``looked_at`` labels were there at the last look. Unbiased requests from
    ``fresh_from`` on have had no part in any head; those from ``head_from`` on had none in the running one.
    """

    attempts: int = 0
    looked_at: int = 0
    fresh_from: int = 0
    head_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """At most ``alpha`` of local answers may differ from the labels; ``delta`` is 1 - confidence."""

    alpha: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a look came to. ``progress`` is to be stored whatever else happens.

    ``head`` with its ``certificate`` takes over; None: all stays as it is, for the reason in ``why``. ``accuracy``,
    ``auroc`` and ``ece`` are those on the certifying items.
    """

    progress: Progress
    why: str
    head: Head | None = None
    certificate: Certificate | None = None
    accuracy: float | None = None
    auroc: float | None = None
    ece: float | None = None


def is_due(progress: Progress, labels: int) -> bool:
    """Whether a look at so many labelled requests may find something new."""
    return labels >= max(FIRST_LOOK_LABELS, progress.looked_at * GROWTH)


def share_of_delta(attempt: int, delta: float) -> float:
    """What the k-th certification may spend, counted from 1; all of them together spend ``delta``."""
    return delta / (attempt * (attempt + 1))


def rolled_back(progress: Progress, next_number: int) -> Progress:
    """What holds once a running certificate was found broken: what came so far may fit, and certifies nothing more."""
    return replace(progress, fresh_from=next_number, head_from=None)


def is_broken(wrong: int, served: int, aim: Aim) -> bool:
    """Whether audits of ``served`` local answers, ``wrong`` of them, contradict the certificate.

    May be asked after every audit: a certificate that holds is called broken with probability ``delta`` at most, ever.
    """
    return binomial.log_evidence(wrong, served, share=aim.alpha) >= -math.log(aim.delta)


def is_kept(number: int) -> bool:
    """Whether a request that came while nothing ran is kept for certifying: every second one, whatever it is."""
    return number % 2 == 1


def propose(
    lessons: Sequence[Lesson], classes: Sequence[str], aim: Aim, progress: Progress, *, running: Head | None = None
) -> Proposal:
    """Fit a head, see whether it is worth a certification, and if so certify it. Takes seconds; pure.

    ``running`` is the head in use, None where nothing is served locally: a new one has to be likely to serve more.
    Raises: ConfigError without scikit-learn.
    """
    progress = replace(progress, looked_at=len(lessons))
    certifying, taught = _parted(lessons, progress, is_serving=running is not None)
    delta = share_of_delta(progress.attempts + 1, aim.delta)
    if upper_bound(0, len(certifying), delta=delta) > aim.alpha:
        return Proposal(progress=progress, why=f"{len(certifying)} labels kept can certify nothing yet")
    if len({lesson.label for lesson in taught}) < _FEWEST_CLASSES:
        return Proposal(progress=progress, why=f"{len(taught)} labels to fit are too few")
    head, held_out = fitting.fit_best(_matrix(taught), _labels(taught).tolist(), classes)
    told = _Foretold.of(held_out, taught)
    scores, right = judged(head, certifying)
    order = _order(scores, told, alpha=aim.alpha, delta=delta)
    if not order.thresholds:
        return Proposal(
            progress=progress, why=f"with {len(certifying)} labels kept no threshold is likely to be certified"
        )
    if not order.is_worth_it and len(lessons) < PATIENCE_LABELS:
        return Proposal(
            progress=progress, why=f"about {order.share:.0%} might be certified now; more labels promise more"
        )
    progress = replace(progress, attempts=progress.attempts + 1)
    certificate = _walk(scores, right, order.thresholds, aim, delta=delta)
    if certificate is None:
        return Proposal(progress=progress, why=f"no threshold keeps the target on {len(certifying)} unbiased labels")
    after = max(lesson.number for lesson in lessons) + 1
    return Proposal(
        progress=replace(progress, head_from=progress.fresh_from, fresh_from=after),
        why=f"certified on {len(certifying)} unbiased labels, fitted to {len(taught)}",
        head=head,
        certificate=certificate,
        accuracy=sum(right) / len(right),
        auroc=metrics.auroc(scores, right),
        ece=metrics.ece(scores, right),
    )


def judged(head: Head, lessons: Sequence[Lesson]) -> tuple[list[float], list[bool]]:
    """The head's confidence in each item, and whether it agrees with the label."""
    scaled = (_matrix(lessons) - head.mean) / head.scale
    probabilities = softmax(scaled @ head.weights.T + head.bias)
    scores = np.interp(probabilities.max(axis=1), head.knots_x, head.knots_y)
    return scores.tolist(), (probabilities.argmax(axis=1) == _labels(lessons)).tolist()


# -- which items -----------------------------------------------------------------------------------------------------


def _parted(lessons: Sequence[Lesson], progress: Progress, *, is_serving: bool) -> tuple[list[Lesson], list[Lesson]]:
    """Those that may certify, and those that may fit."""

    def certifies(lesson: Lesson) -> bool:
        is_fresh = lesson.is_unbiased and lesson.number >= progress.fresh_from
        return is_fresh and (is_serving or is_kept(lesson.number))

    return [one for one in lessons if certifies(one)], [one for one in lessons if not certifies(one)]


def _matrix(lessons: Sequence[Lesson]) -> Matrix:
    return np.array([lesson.features for lesson in lessons], dtype=np.float64)


def _labels(lessons: Sequence[Lesson]) -> NDArray[np.int64]:
    return np.array([lesson.label for lesson in lessons], dtype=np.int64)


# -- where to look, without looking ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Foretold:
    """How often the fitting items were wrong, the most confident ones first, by weights that had not seen them."""

    wrong: NDArray[np.int64]

    @classmethod
    def of(cls, held_out: Matrix, taught: Sequence[Lesson]) -> "_Foretold":
        """Of the unbiased items; of all where those are few."""
        unbiased = np.array([lesson.is_unbiased for lesson in taught])
        own: Flags = unbiased if unbiased.sum() >= FIRST_LOOK_LABELS // 2 else np.ones(len(taught), dtype=bool)
        missed = (held_out.argmax(axis=1) != _labels(taught))[own]
        return cls(np.cumsum(missed[np.argsort(-held_out.max(axis=1)[own], kind="stable")]))

    def error(self, share: float) -> float:
        """The error rate to expect where so much is served; half an error more than was seen."""
        served = max(1, round(share * len(self.wrong)))
        return float((self.wrong[served - 1] + 0.5) / (served + 1))


@dataclass(frozen=True, slots=True)
class _Order:
    """Thresholds to try, one after another until one fails; ``share``: how much the likely ones of them would serve."""

    thresholds: tuple[float, ...]
    share: float
    is_worth_it: bool


def _order(scores: Sequence[float], told: _Foretold, *, alpha: float, delta: float) -> _Order:
    """From the threshold that is most likely to be certified towards looser ones."""
    thresholds = grid(scores)
    served = [sum(score >= threshold for score in scores) for threshold in thresholds]
    errors = [told.error(count / len(scores)) for count in served]
    allowed = [_most_errors(count, alpha=alpha, delta=delta) for count in served]
    odds = [binomial.at_most(k, n, share=error) for k, n, error in zip(allowed, served, errors, strict=True)]
    likely = [count / len(scores) for count, chance in zip(served, odds, strict=True) if chance >= _LIKELY]
    reachable = [count / len(scores) for count, error in zip(served, errors, strict=True) if error <= alpha]
    if not likely:
        return _Order((), 0.0, is_worth_it=False)
    start = odds.index(max(odds))
    return _Order(thresholds[start:], likely[-1], is_worth_it=likely[-1] >= WORTHWHILE_SHARE * reachable[-1])


def _most_errors(served: int, *, alpha: float, delta: float) -> int:
    """So many errors among the served still certify ``alpha``; -1 where not even none does."""
    low, high = -1, served
    while low < high:
        middle = (low + high + 1) // 2
        if upper_bound(middle, served, delta=delta) <= alpha:
            low = middle
        else:
            high = middle - 1
    return low


def _walk(
    scores: Sequence[float], right: Sequence[bool], thresholds: Sequence[float], aim: Aim, *, delta: float
) -> Certificate | None:
    """The loosest threshold before the first whose bound is over the target."""
    found: Certificate | None = None
    for threshold in thresholds:
        served = [is_right for score, is_right in zip(scores, right, strict=True) if score >= threshold]
        bound = upper_bound(served.count(False), len(served), delta=delta)
        if bound > aim.alpha:
            break
        found = Certificate(
            threshold=threshold,
            alpha=aim.alpha,
            delta=aim.delta,
            served=len(served),
            wrong=served.count(False),
            bound=bound,
            coverage=len(served) / len(scores),
        )
    return found
