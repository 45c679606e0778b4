"""Numbers about answers, and how sure they are: pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.calibration.heads import softmax

RESAMPLES = 2000
_SEED = 20_260_101
_TAILS_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model file answered: per item the option it chose, whether that is right, and how sure it was.

    ``task`` numbers the task of each item; all arrays have the length of the set.
    """

    choice: NDArray[np.int64]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    task: NDArray[np.int64]


def answers(scores: list[list[float]], right: tuple[int, ...], *, fixed_labels: bool, task: int = 0) -> Answers:
    """Choose the best option of each item. Confidence is the gap between the two most likely (softmax of the scores).

    With fixed labels each label's mean score over the items is taken off first.
    """
    table = np.array(scores, dtype=np.float64)
    if fixed_labels:
        table -= table.mean(axis=0)
    choice = table.argmax(axis=1)
    top = np.sort(softmax(table), axis=1)
    correct = choice == np.array(right)
    return Answers(choice, correct, top[:, -1] - top[:, -2], np.full(len(scores), task))


def joined(parts: list[Answers]) -> Answers:
    """Several tasks as one set."""
    return Answers(
        np.concatenate([part.choice for part in parts]),
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.task for part in parts]),
    )


def accuracy(given: Answers) -> float:
    return float(given.correct.mean())


def auroc(given: Answers) -> float | None:
    """How often a right answer is surer than a wrong one of the same task, ties half; None without such a pair."""
    value = _aurocs(given, np.ones((1, len(given.correct))))[0]
    return None if np.isnan(value) else float(value)


def agreement(a: Answers, b: Answers) -> float:
    """Share of the items on which two files choose the same option."""
    return float((a.choice == b.choice).mean())


def accuracy_change(published: Answers, candidate: Answers) -> Interval:
    """The candidate's accuracy less the published file's, over the same items (paired bootstrap)."""
    gain = candidate.correct.astype(float) - published.correct.astype(float)
    weights = _resamples(published.task)
    low, high = np.percentile(weights @ gain / len(gain), _TAILS_PERCENT)
    return Interval(float(gain.mean()), float(low), float(high))


def auroc_change(published: Answers, candidate: Answers) -> Interval | None:
    """The candidate's AUROC less the published file's (paired bootstrap); None where either has none."""
    before, after = auroc(published), auroc(candidate)
    if before is None or after is None:
        return None
    weights = _resamples(published.task)
    changes = _aurocs(candidate, weights) - _aurocs(published, weights)
    low, high = np.nanpercentile(changes, _TAILS_PERCENT)
    return Interval(after - before, float(low), float(high))


def _resamples(task: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each item is drawn, by resample and item; each task keeps its size."""
    random = np.random.default_rng(_SEED)
    weights = np.zeros((RESAMPLES, len(task)))
    for number in np.unique(task):
        members = np.flatnonzero(task == number)
        even = np.full(len(members), 1 / len(members))
        weights[:, members] = random.multinomial(len(members), even, size=RESAMPLES)
    return weights


def _aurocs(given: Answers, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """One AUROC per row of item weights; NaN where no right answer meets a wrong one."""
    right, wrong = np.flatnonzero(given.correct), np.flatnonzero(~given.correct)
    gap = given.confidence[right][:, None] - given.confidence[wrong][None, :]
    same = given.task[right][:, None] == given.task[wrong][None, :]
    won = ((gap > 0) + 0.5 * (gap == 0)) * same
    pairs = _weighted(weights[:, right], same.astype(float), weights[:, wrong])
    wins = _weighted(weights[:, right], won, weights[:, wrong])
    rates = np.full(len(weights), np.nan)
    np.divide(wins, pairs, out=rates, where=pairs > 0)
    return rates


def _weighted(left: NDArray[np.float64], table: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = ((left @ table) * right).sum(axis=1)
    return result
