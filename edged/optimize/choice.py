"""Which format to install: pure.

The fastest whose accuracy and AUROC are not measurably worse than the published file's; else the published file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from edged.optimize.stats import Interval

MIN_GAIN = 1.05
"""A format must take a request so much faster to be worth another file."""

MAX_ACCURACY_DROP = 0.02
MAX_AUROC_DROP = 0.03
"""However wide the interval: a drop of more than this is not taken."""

TIE = 0.03
"""Formats within this share of the fastest are as fast: the one whose confidence is worth most is taken."""

_ROUNDING = 1e-9


class Verdict(StrEnum):
    """What the rule says of one format."""

    PUBLISHED = "as published"
    CHOSEN = "chosen"
    GOOD = "good, not the fastest"
    SLOWER = "not faster"
    LESS_ACCURATE = "less accurate"
    LESS_SURE = "confidence worth less"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Measured:
    """One format against the published file: how many times faster a request is, and the changes in quality.

    ``auroc`` is None where too few answers are wrong, or right, to have one.
    """

    weight_format: str
    speed: float
    bytes: int
    accuracy: Interval | None
    auroc: Interval | None


def judge(measured: Measured) -> Verdict:
    """May this format replace the published file? GOOD if so."""
    # 1. Worth it?
    if measured.speed < MIN_GAIN:
        return Verdict.SLOWER
    # 2. As often right?
    if measured.accuracy is None or _is_worse(measured.accuracy, MAX_ACCURACY_DROP):
        return Verdict.LESS_ACCURATE
    # 3. Is its confidence worth as much?
    if measured.auroc is not None and _is_worse(measured.auroc, MAX_AUROC_DROP):
        return Verdict.LESS_SURE
    return Verdict.GOOD


def choose(candidates: Iterable[Measured]) -> str | None:
    """The format to install, or None to stay with the published file."""
    good = [candidate for candidate in candidates if judge(candidate) is Verdict.GOOD]
    if not good:
        return None
    fastest = max(candidate.speed for candidate in good)
    as_fast = [candidate for candidate in good if candidate.speed >= fastest * (1 - TIE)]
    return max(as_fast, key=_worth).weight_format


def _worth(candidate: Measured) -> tuple[float, float, int]:
    return (candidate.auroc.value if candidate.auroc else 0.0, candidate.speed, -candidate.bytes)


def _is_worse(change: Interval, most: float) -> bool:
    """Measurably (the interval lies below zero), or by more than ``most`` whatever the interval."""
    return change.high < 0 or change.value < -most - _ROUNDING
