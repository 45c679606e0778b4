"""How good a score is at telling right answers from wrong ones. Scores: higher means more trusted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


def auroc(scores: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Probability that a right answer scores above a wrong one, ties counting half; None with only one kind."""
    values, right = _arrays(scores, correct)
    positives, negatives = values[right], values[~right]
    if not len(positives) or not len(negatives):
        return None
    order = np.sort(negatives)
    below = np.searchsorted(order, positives, side="left")
    not_above = np.searchsorted(order, positives, side="right")
    return float((below + not_above).sum() / 2 / (len(positives) * len(negatives)))


def ece(probabilities: Sequence[float], correct: Sequence[bool], *, bins: int = ECE_BINS) -> float:
    """Expected calibration error over bins of equal mass: mean distance of stated probability and share of right ones.

    0 for no items. Equal-mass bins as in Nguyen and O'Connor, "Posterior calibration" (2015).
    """
    values, right = _arrays(probabilities, correct)
    if not len(values):
        return 0.0
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, min(bins, len(values)))
    return float(sum(len(part) * abs(values[part].mean() - right[part].mean()) for part in parts) / len(values))


def brier(probabilities: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared distance of the stated probability and what happened; 0 for no items."""
    values, right = _arrays(probabilities, correct)
    return float(((values - right) ** 2).mean()) if len(values) else 0.0


def aurc(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """Area under the risk-coverage curve: the mean error of the most trusted k items, over all k; 0 for no items."""
    values, right = _arrays(scores, correct)
    if not len(values):
        return 0.0
    wrong = ~right[np.argsort(-values, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def accuracy_at(scores: Sequence[float], correct: Sequence[bool], *, coverage: float) -> float | None:
    """Accuracy of the most trusted share of the items; None where the share is empty."""
    values, right = _arrays(scores, correct)
    count = round(len(values) * coverage)
    return float(right[np.argsort(-values, kind="stable")[:count]].mean()) if count else None


def _arrays(scores: Sequence[float], correct: Sequence[bool]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores for {len(correct)} labels")
    return np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.bool_)
