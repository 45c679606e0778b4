"""Whether the answers that are kept err more often than they may: a running certificate over their audits. Pure.

Every audited answer is a bet against the hypothesis "at most the target is wrong". Each of a few bettors stakes a fixed
part of what it has; none can gain on average while the hypothesis holds, so their mean wealth ever reaching 1/delta has
at most the probability delta (Ville), however often one looks and whatever the answers have to do with each other. The
least error rate that is not refuted so far is a lower bound that holds at all times at once.

Betting confidence sequences: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2020,
arXiv:2010.09686). Old wins must not pay for new losses: beside the bet over everything since the last change, a fresh
one begins every ``EPOCH`` audits, and the j-th of them may be wrong with probability delta / (2 j (j + 1)), so that
all of them together have half of delta and the long one the other half.
"""

import math
from dataclasses import dataclass, replace

from edged import binomial

DELTA = 0.1
"""How likely a route's certificate may be to break although the target is kept."""
EPOCH = 200
STEP = 0.05
MOST_STEPS = 10
"""After so many steps nothing is kept on its confidence any more."""

_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class Tally:
    """Audits, and those of them whose answer was wrong."""

    compared: int = 0
    wrong: int = 0

    def with_one(self, *, wrong: bool) -> "Tally":
        return Tally(self.compared + 1, self.wrong + wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A certificate as it stands. ``whole`` counts since the last change, ``recent`` in the ``epoch``-th part of that.

    ``steps`` is how often the threshold was tightened; nothing is kept on its confidence where that ``is_closed``.
    """

    steps: int = 0
    whole: Tally = Tally()
    recent: Tally = Tally()
    epoch: int = 1

    @property
    def is_closed(self) -> bool:
        return self.steps > MOST_STEPS

    def noted(self, *, wrong: bool) -> "Running":
        """With one more audit."""
        whole, recent = self.whole.with_one(wrong=wrong), self.recent.with_one(wrong=wrong)
        if self.recent.compared >= EPOCH:
            return replace(self, whole=whole, recent=Tally().with_one(wrong=wrong), epoch=self.epoch + 1)
        return replace(self, whole=whole, recent=recent)

    def lower_bound(self, delta: float = DELTA) -> float:
        """The error rate is at least that, with probability 1 - delta at all times at once."""
        return max(
            lower_bound(self.whole, delta=delta / 2),
            lower_bound(self.recent, delta=delta / 2 / (self.epoch * (self.epoch + 1))),
        )

    def upper_bound(self, delta: float = DELTA) -> float:
        """The error rate since the last change is at most that, with the same certainty."""
        return upper_bound(self.whole, delta=delta)

    def is_broken(self, target: float, delta: float = DELTA) -> bool:
        """Whether more than ``target`` is wrong, beyond doubt."""
        return self.lower_bound(delta) > target

    def tightened(self) -> "Running":
        """One step stricter, and counted anew."""
        return Running(steps=self.steps + 1)


def threshold(base: float, running: Running) -> float:
    """The threshold in force in place of ``base``; infinite where no answer passes any more."""
    if not running.steps:
        return base
    stricter = base + STEP * running.steps
    return math.inf if running.is_closed or stricter >= 1 else round(stricter, 9)


def log_wealth(tally: Tally, error: float) -> float:
    """The logarithm of what the bettors have on average, of 1 each, against an error rate of at most ``error``."""
    return binomial.log_evidence(tally.wrong, tally.compared, share=error)


def lower_bound(tally: Tally, *, delta: float) -> float:
    """The least error rate that the bets do not refute; wealth only falls as the hypothesis allows more."""
    if not tally.wrong:
        return 0.0
    needed, low, high = -math.log(delta), 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if log_wealth(tally, middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def upper_bound(tally: Tally, *, delta: float) -> float:
    """As ``lower_bound``, betting on right answers."""
    return 1 - lower_bound(Tally(tally.compared, tally.compared - tally.wrong), delta=delta)
