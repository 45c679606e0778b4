"""When a second answer is worth starting: past the slow tail of the local ones, and never more often than agreed."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

MIN_SAMPLES = 20
KEPT_SAMPLES = 256
WINDOW_REQUESTS = 200
_TAIL_PERCENT = 95


class Winner(Enum):
    """Who answers a hedged request, as far as that is known."""

    OPEN = auto()
    LOCAL = auto()
    CLOUD = auto()
    NOBODY = auto()


class Side(Enum):
    """How far one side of a hedged request has come; ACCEPTED: its first token may be sent."""

    RUNNING = auto()
    ACCEPTED = auto()
    LOST = auto()


def winner(local: Side, cloud: Side) -> Winner:
    """The one author of a hedged request.

    1. An accepted local answer: it costs nothing, so it also wins a tie.
    2. A cloud answer with a first token.
    3. Nobody is left.
    4. Not known yet.
    """
    if local is Side.ACCEPTED:  # 1
        return Winner.LOCAL
    if cloud is Side.ACCEPTED:  # 2
        return Winner.CLOUD
    if local is Side.LOST and cloud is Side.LOST:  # 3
        return Winner.NOBODY
    return Winner.OPEN  # 4


@dataclass(slots=True)
class Tail:
    """The slow tail of one route's local answers, by nearest rank over the latest ``KEPT_SAMPLES``.

    One slow sample moves it by one rank. An answer that was cut off counts with the time it had already taken: the true
    value is larger, and leaving it out would make the tail look shorter than it is.
    """

    samples_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))

    def note(self, seconds: float) -> None:
        self.samples_s.append(seconds)

    @property
    def p95_s(self) -> float | None:
        """None until ``MIN_SAMPLES`` were measured."""
        count = len(self.samples_s)
        if count < MIN_SAMPLES:
            return None
        return sorted(self.samples_s)[(count * _TAIL_PERCENT + 99) // 100 - 1]


@dataclass(slots=True)
class HedgeBudget:
    """A token bucket filled by requests, not by time: each may-be-hedged request earns ``max_share``, a hedge costs 1.

    It begins empty, so that over all requests hedges never exceed ``max_share`` of them; what it saves is capped by the
    share of ``WINDOW_REQUESTS``, so that a long quiet time cannot be followed by a storm.
    """

    max_share: float
    saved: float = 0.0

    def earn(self) -> None:
        """One more request that may be hedged has come."""
        self.saved = min(self.saved + self.max_share, max(1.0, self.max_share * WINDOW_REQUESTS))

    def spend(self) -> bool:
        """Take one hedge; False where none is left."""
        if self.saved < 1.0 - 1e-9:  # twenty times 0.05 is a little less than one
            return False
        self.saved = max(0.0, self.saved - 1.0)
        return True
