"""How wrong what is served locally can be: exact bounds, and the loosest threshold that still keeps a target.

The statement is about *selective* risk, P(wrong | served), for traffic like the calibration items (exchangeable with
them), on average over the task, not per query: with probability at least ``1 - delta`` over the calibration items,
the error rate of what a certified threshold serves is at most ``alpha``.

Source: fixed-sequence testing over a nested family as in Angelopoulos et al., "Learn then Test" (2021).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edged import binomial

GRID_SIZE = 40
"""Candidate thresholds, spread evenly over the share of traffic they would serve."""

_START_FACTORS = (1.3, 2.5, 6.0)
"""A walk starts where it can expect to serve this many times the fewest items that could certify anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Answers that score ``threshold`` or more err in at most ``alpha`` of cases, at confidence 1 - delta.

    ``bound`` is the upper bound on the error rate, from ``wrong`` of ``served`` calibration items; ``coverage`` is the
    share of the calibration items that would have been served. ``delta`` is what all walks together may spend;
    ``bound`` is computed at the level of the one walk that found the threshold, a third of it.
    """

    threshold: float
    alpha: float
    delta: float
    served: int
    wrong: int
    bound: float
    coverage: float


def upper_bound(wrong: int, served: int, *, delta: float) -> float:
    """Clopper-Pearson: the largest error rate under which so few errors still have probability ``delta``; 1 for none.

    Raises: ValueError unless 0 <= wrong <= served and 0 < delta < 1.
    """
    _check(wrong, served, delta)
    return binomial.upper_bound(wrong, served, tail=delta)


def lower_bound(wrong: int, served: int, *, delta: float) -> float:
    """Clopper-Pearson: the smallest error rate under which so many errors still have probability ``delta``.

    Raises: as ``upper_bound``.
    """
    _check(wrong, served, delta)
    return binomial.lower_bound(wrong, served, tail=delta)


def fewest_items(alpha: float, delta: float) -> int:
    """How many served items without a single error it takes to certify ``alpha``."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def most_coverage(accuracy: float, alpha: float) -> float:
    """The share that could be served at best with an error of ``alpha``, whatever the score: all the right answers."""
    return min(1.0, accuracy / (1.0 - alpha))


def grid(traffic_scores: Sequence[float], *, size: int = GRID_SIZE) -> tuple[float, ...]:
    """Candidate thresholds, strict to loose, from scores of *unlabelled* traffic; the last one serves all of it."""
    ordered = sorted(traffic_scores, reverse=True)
    if not ordered:
        return ()
    places = (math.ceil(len(ordered) * step / size) - 1 for step in range(1, size + 1))
    return tuple(sorted({ordered[max(0, place)] for place in places}, reverse=True))


def certify(
    scores: Sequence[float],
    correct: Sequence[bool],
    *,
    alpha: float,
    delta: float,
    thresholds: Sequence[float],
    traffic_scores: Sequence[float],
) -> Certificate | None:
    """The loosest threshold that keeps the target; None where the items cannot certify any ("uncertified").

    ``thresholds`` (strict to loose) and the walks' starts are fixed by ``traffic_scores``, before any label is looked
    at. Each of three walks goes from its start towards looser thresholds and ends at the first one whose bound is over
    ``alpha``; each has a third of ``delta``.

    Raises: ValueError where scores and labels differ in number, or alpha or delta are not within (0, 1).
    """
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores for {len(correct)} labels")
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise ValueError(f"alpha and delta must be within (0, 1), not {alpha} and {delta}")
    share = delta / len(_START_FACTORS)
    expected = _expected_served(len(scores), thresholds, traffic_scores)
    certified: Certificate | None = None
    for factor in _START_FACTORS:
        needed = factor * fewest_items(alpha, share)
        start = next((j for j, served in enumerate(expected) if served >= needed), len(thresholds))
        for threshold in thresholds[start:]:
            candidate = _candidate(scores, correct, threshold, alpha=alpha, delta=delta)
            if candidate.bound > alpha:
                break
            if certified is None or candidate.threshold < certified.threshold:
                certified = candidate
    return certified


def _candidate(
    scores: Sequence[float], correct: Sequence[bool], threshold: float, *, alpha: float, delta: float
) -> Certificate:
    """One threshold seen by one of the walks."""
    share = delta / len(_START_FACTORS)
    served = [right for score, right in zip(scores, correct, strict=True) if score >= threshold]
    wrong = served.count(False)
    return Certificate(
        threshold=threshold,
        alpha=alpha,
        delta=delta,
        served=len(served),
        wrong=wrong,
        bound=upper_bound(wrong, len(served), delta=share),
        coverage=len(served) / len(scores) if scores else 0.0,
    )


def _expected_served(items: int, thresholds: Sequence[float], traffic: Sequence[float]) -> list[float]:
    return [items * sum(score >= threshold for score in traffic) / max(1, len(traffic)) for threshold in thresholds]


def _check(wrong: int, served: int, delta: float) -> None:
    if not 0 <= wrong <= served:
        raise ValueError(f"{wrong} wrong of {served} served is impossible")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be within (0, 1), not {delta}")
