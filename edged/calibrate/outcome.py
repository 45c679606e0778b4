"""From observed items to an artefact and one plain sentence: fitted on one half, certified on the other. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from edged.calibrate import levels
from edged.calibrate.dataset import FEWEST_LABELS
from edged.calibrate.levels import Answered, Choice, Scored, Tried
from edged.calibration import metrics
from edged.calibration.artefact import Artefact, LabelSource, settled
from edged.calibration.certificate import (
    GRID_SIZE,
    Certificate,
    certify,
    fewest_items,
    grid,
    most_coverage,
    upper_bound,
)
from edged.calibration.heads import HeadKey

WALKS = 3
START_FACTOR = 1.3
"""The certificate's strictest walk starts where it expects to serve so many times the fewest items."""

FEWEST_ITEMS = FEWEST_LABELS
_MOST_LABELS = 1_000_000
_LEAST_SEEN = 15
"""A share of the fitting half with fewer items says nothing of its error."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for: an error among what is served, or a share for the cloud. ``delta`` is 1 - confidence."""

    max_error: float | None
    cloud_share: float | None
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One item of the certifying half. ``options``, of a closed set: the places of the right and the chosen one."""

    confidence: float
    right: bool
    options: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The whole result. ``fitted`` and ``certified_on`` count the items of the two halves.

    ``most_share`` is what could be served at best with a perfect score; ``labels_needed`` is a guess at how many labels
    in all would certify something, None where no number would.
    """

    artefact: Artefact
    target: Target
    tried: tuple[Tried, ...]
    judged: tuple[Judged, ...]
    fitted: int
    certified_on: int
    most_share: float
    labels_needed: int | None
    sentence: str

    @property
    def served(self) -> tuple[Judged, ...]:
        """What would be served of the certifying half."""
        threshold = self.artefact.threshold
        return tuple(item for item in self.judged if threshold is not None and item.confidence >= threshold)

    @property
    def served_share(self) -> float:
        return len(self.served) / len(self.judged)

    @property
    def served_error(self) -> float | None:
        """Seen on the certifying half; the certificate's bound is what may be relied on."""
        served = self.served
        return sum(not item.right for item in served) / len(served) if served else None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an artefact says of itself."""

    key: HeadKey
    source: LabelSource
    made_at: str
    note: str = ""


T = TypeVar("T", Scored, Answered)


def of_scored(
    fitting: Sequence[Scored], certifying: Sequence[Scored], *, classes: Sequence[str], target: Target, about: About
) -> Outcome:
    """A closed set. The two halves share no item. Raises: ConfigError where scikit-learn is missing."""
    choice = levels.choose_scored(fitting, classes)

    def judge(artefact: Artefact, item: Scored) -> Judged:
        judged = artefact.judge(item.logprobs, item.state)
        options = (item.label, judged.choice)
        return Judged(confidence=judged.confidence, right=judged.choice == item.label, options=options)

    return _outcome(choice, certifying, judge, target=target, about=about)


def of_answered(
    fitting: Sequence[Answered], certifying: Sequence[Answered], *, target: Target, about: About
) -> Outcome:
    """Generated answers. Raises: as ``of_scored``."""
    choice = levels.choose_answered(fitting)

    def judge(artefact: Artefact, item: Answered) -> Judged:
        features = None if item.features is None or artefact.head is None else levels.vector(item.features)
        return Judged(confidence=artefact.judge_answer(item.score, features), right=item.right)

    return _outcome(choice, certifying, judge, target=target, about=about)


def _outcome(
    choice: Choice, items: Sequence[T], judge: Callable[[Artefact, T], Judged], *, target: Target, about: About
) -> Outcome:
    draft = settled(_draft(choice, about))
    judged = tuple(judge(draft, item) for item in items)
    scores, right = [item.confidence for item in judged], [item.right for item in judged]
    threshold, certificate = _threshold(scores, right, target)
    artefact = replace(
        draft,
        threshold=threshold,
        certificate=certificate,
        labels=len(choice.right) + len(judged),
        accuracy=sum(right) / len(right),
        auroc=metrics.auroc(scores, right),
        ece=metrics.ece(scores, right),
    )
    needed = labels_needed(choice, target)
    outcome = Outcome(
        artefact=artefact,
        target=target,
        tried=choice.tried,
        judged=judged,
        fitted=len(choice.right),
        certified_on=len(judged),
        most_share=1.0 if target.max_error is None else most_coverage(artefact.accuracy, target.max_error),
        labels_needed=needed,
        sentence="",
    )
    sentence = _sentence(outcome)
    note = "; ".join(filter(None, (about.note, sentence)))
    return replace(outcome, sentence=sentence, artefact=settled(replace(artefact, note=note)))


def _draft(choice: Choice, about: About) -> Artefact:
    """The fitted part alone: a threshold is found with what will come back from the file."""
    return Artefact(
        key=about.key,
        level=choice.level,
        source=about.source,
        **choice.parts,
        threshold=None,
        certificate=None,
        labels=len(choice.right),
        accuracy=float(choice.right.mean()),
        auroc=None,
        ece=None,
        made_at=about.made_at,
        note=about.note,
    )


def _threshold(
    scores: Sequence[float], right: Sequence[bool], target: Target
) -> tuple[float | None, Certificate | None]:
    """Candidates come from the certifying half's scores before any of its labels is looked at."""
    if target.cloud_share is not None:
        return share_threshold(scores, target.cloud_share), None
    assert target.max_error is not None
    certificate = certify(
        scores, right, alpha=target.max_error, delta=target.delta, thresholds=grid(scores), traffic_scores=scores
    )
    return (None if certificate is None else certificate.threshold), certificate


def share_threshold(scores: Sequence[float], cloud_share: float) -> float | None:
    """The threshold under which the given share of the scores lies; None where all are to go to the cloud."""
    kept = math.floor(len(scores) * (1 - cloud_share) + 1e-9)
    return sorted(scores, reverse=True)[kept - 1] if kept else None


# -- what it comes to ----------------------------------------------------------------------------------------------


def labels_needed(choice: Choice, target: Target) -> int | None:
    """A guess from the fitting half alone: with how many labels its best share would be certified; None: with none.

    Half of the labels certify. Of those the share is served, with the error it has in cross-validation.
    """
    if target.max_error is None:
        return None
    level, least = target.delta / WALKS, fewest_items(target.max_error, target.delta / WALKS)
    order = sorted(zip(choice.scores.tolist(), choice.right.tolist(), strict=True), key=lambda pair: -pair[0])
    best: int | None = None
    fewest, step = min(_LEAST_SEEN, len(order)), math.ceil(len(order) / GRID_SIZE)
    for served in (*range(fewest, len(order), step), len(order)):
        wrong = sum(not right for _, right in order[:served])
        items = _items_needed(wrong / served, target.max_error, level=level, least=math.ceil(START_FACTOR * least))
        if items is not None:
            labels = 2 * math.ceil(items * len(order) / served)
            best = labels if best is None else min(best, labels)
    return best


def _items_needed(error: float, alpha: float, *, level: float, least: int) -> int | None:
    """The fewest served items whose bound is within ``alpha`` if they err at this rate."""
    if error >= alpha:
        return None
    items = least
    while upper_bound(math.ceil(items * error), items, delta=level) > alpha:
        items = math.ceil(items * 1.1)
        if items > _MOST_LABELS:
            return None
    return items


def _sentence(outcome: Outcome) -> str:
    target, certificate = outcome.target, outcome.artefact.certificate
    from_cloud = outcome.artefact.source is LabelSource.CLOUD
    sure = f"confidence {percent(1 - target.delta)}"
    if target.cloud_share is not None:
        return _share_sentence(outcome, sure, from_cloud=from_cloud)
    assert target.max_error is not None
    if certificate is not None:
        what = "disagreement with the cloud" if from_cloud else "error"
        return f"serves {percent(certificate.coverage)} locally with at most {percent(target.max_error)} {what}, {sure}"
    if outcome.labels_needed is None:
        cannot = "this model does not agree with the cloud on this task" if from_cloud else _CANNOT
        return f"uncertified: {cannot}; everything goes to the cloud"
    labels = outcome.artefact.labels
    asked = f"at most {percent(target.max_error)} error, {sure}"
    if outcome.labels_needed <= labels:
        return f"uncertified: no share of the test half kept {asked}; everything goes to the cloud"
    return (
        f"uncertified: {labels} labels are too few for {asked} (about {outcome.labels_needed} might do); "
        "everything goes to the cloud"
    )


_CANNOT = "this model cannot do this task"


def _share_sentence(outcome: Outcome, sure: str, *, from_cloud: bool) -> str:
    """The threshold was chosen without a label, so the bound on its error is the plain exact one."""
    served, error = outcome.served, outcome.served_error
    if error is None:
        return "everything goes to the cloud, as asked"
    wrong = sum(not item.right for item in served)
    bound = upper_bound(wrong, len(served), delta=outcome.target.delta)
    what = "disagree with the cloud" if from_cloud else "are wrong"
    return (
        f"sends {percent(1 - outcome.served_share)} to the cloud; {wrong} of the {len(served)} it served in the test "
        f"{what}, at most {percent(bound)} in the long run, {sure}"
    )


def percent(share: float) -> str:
    """``72 %``; below ten per cent with one digit behind the point, unless it is nought."""
    whole = round(share * 100)
    tenths = round(share * 1000)
    return f"{whole} %" if whole >= _TWO_DIGITS or tenths == whole * 10 else f"{tenths / 10:.1f} %"


_TWO_DIGITS = 10
