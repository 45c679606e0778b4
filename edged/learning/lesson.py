"""What observations of one task come to: when a fit is due, what it may promise, when a promise is broken. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edged.calibration import certificate, metrics
from edged.calibration.artefact import Artefact, LabelSource, Level, option_features, settled
from edged.calibration.fitting import fit as fit_head
from edged.config.tasks import TaskTarget
from edged.learning.child import Order
from edged.learning.observations import Observation
from edged.routing.drift import Running

FIRST_LABELS = 60
GROWTH = 1.4
"""Each fit waits for so many times the labels of the one before."""
_STRENGTH = 0.1
_FEWEST_CLASSES = 2


class Lesson:
    """Counts what was noted of one task under one key, and keeps the running certificate of each version."""

    def __init__(self, target: TaskTarget) -> None:
        self._target = target
        self._running: dict[int, Running] = {}
        self._fitted_on = 0
        self.labels = 0
        self.unbiased = 0

    def __repr__(self) -> str:
        return f"Lesson(labels={self.labels}, unbiased={self.unbiased})"

    def note(self, seen: Observation) -> None:
        if (is_right := seen.is_right) is None:
            return
        self.labels += 1
        if seen.is_audited:
            self.unbiased += 1
        if seen.is_audited and seen.is_local and seen.version:
            self._running[seen.version] = self._running.get(seen.version, Running()).noted(wrong=not is_right)

    def is_due(self) -> bool:
        return self.labels >= max(FIRST_LABELS, self._fitted_on * GROWTH)

    def began(self) -> None:
        self._fitted_on = self.labels

    def broken(self, artefact: Artefact, version: int) -> str | None:
        """Why the version's promise does not hold, in numbers; None while nothing speaks against it."""
        running, promised = self._running.get(version), artefact.certificate
        if running is None or promised is None or not running.is_broken(promised.alpha, promised.delta):
            return None
        seen = running.whole
        return (
            f"{seen.wrong} of {seen.compared} audited local answers were wrong: at least "
            f"{100 * running.lower_bound(promised.delta):.1f} %, promised were at most {100 * promised.alpha:g} %"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """An artefact to take over, or why there is none."""

    artefact: Artefact | None
    why: str


def fit(order: Order, observations: Sequence[Observation]) -> Found:
    """Fit on what is labelled, but for half of the unbiased sample, and certify on that half.

    Raises: ConfigError where scikit-learn is missing.
    """
    labelled = [seen for seen in observations if seen.label is not None]
    sample = [seen for seen in labelled if seen.is_audited]
    held_out = sample[order.attempt % 2 :: 2]
    chosen = {id(seen) for seen in held_out}
    fitting = [seen for seen in labelled if id(seen) not in chosen]
    has_state = all(seen.hidden is not None for seen in labelled)
    labels = [seen.label for seen in fitting if seen.label is not None]
    if len(set(labels)) < _FEWEST_CLASSES or not held_out:
        return Found(None, f"{len(labels)} labels of {len(set(labels))} options are too few")
    features = np.stack([option_features(seen.logprobs, seen.state if has_state else None) for seen in fitting])
    draft = settled(
        Artefact(
            key=order.key,
            level=Level.HIDDEN if has_state else Level.FEATURES,
            source=LabelSource.CLOUD,
            head=fit_head(features, labels, order.options, strength=_STRENGTH),
            threshold=None,
            certificate=None,
            labels=len(labelled),
            accuracy=0.0,
            auroc=None,
            ece=None,
            made_at=order.made_at,
        )
    )
    judged = [draft.judge(seen.logprobs, seen.state) for seen in held_out]
    scores = [one.confidence for one in judged]
    right = [one.choice == seen.label for one, seen in zip(judged, held_out, strict=True)]
    traffic = [draft.judge(seen.logprobs, seen.state).confidence for seen in sample]
    found = certificate.certify(
        scores,
        right,
        alpha=order.max_error or 0.5,
        delta=order.delta,
        thresholds=certificate.grid(traffic),
        traffic_scores=traffic,
    )
    if found is None:
        return Found(None, f"no threshold keeps the target on {len(held_out)} unbiased labels")
    return Found(
        replace(
            draft,
            threshold=found.threshold,
            certificate=found,
            accuracy=sum(right) / len(right),
            auroc=metrics.auroc(scores, right),
            ece=metrics.ece(scores, right),
        ),
        "",
    )
