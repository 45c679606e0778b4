"""When an upstream that fails is left alone: a circuit breaker as a pure state machine, clocks as arguments.

Closed: everybody may ask. Too many of the last calls failed: open, nobody may, for a time that grows from trip to trip.
That time over: half-open, one may try; its success closes, its failure opens for longer.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from edged.errors import (
    EdgedError,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamOffline,
    UpstreamRejected,
    UpstreamTimeout,
)

_SHORT_WAIT_S = 1.0
_FORBIDDEN = 403


class Circuit(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Finding(StrEnum):
    """What one call says about the upstream. ``NOTHING``: about the caller, or about the path, but not about it."""

    GOOD = "good"
    BAD = "bad"
    DENIED = "denied"
    FORBIDDEN = "forbidden"
    UNREACHED = "unreached"
    NOTHING = "nothing"


def finding(error: EdgedError | None) -> Finding:
    """Judge a call by how it ended; None is a first token.

    1. Never connected: says something about the path alone.
    2. Refused our key or account (401, 402), or this model to us (403).
    3. Refused the request (any other 4xx), or never made the call: the caller's fault.
    4. Said when to come back: its word is kept elsewhere, and it is well.
    5. Anything else: bad.
    """
    if error is None:
        return Finding.GOOD
    if not isinstance(error, UpstreamError) or isinstance(error, UpstreamOffline):  # 3
        return Finding.NOTHING
    if not error.reached:  # 1
        return Finding.UNREACHED
    if isinstance(error, UpstreamDenied):  # 2
        return Finding.FORBIDDEN if error.answered == _FORBIDDEN else Finding.DENIED
    if isinstance(error, UpstreamRejected):  # 3
        return Finding.NOTHING
    if isinstance(error, UpstreamBusy) and (error.retry_after_s or 0.0) >= _SHORT_WAIT_S:  # 4
        return Finding.NOTHING
    if isinstance(error, UpstreamTimeout) and error.code == "deadline_exceeded":  # 3: the caller's own
        return Finding.NOTHING
    return Finding.BAD  # 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """``min_calls`` of the last ``keep_calls`` calls, none older than ``keep_s``, and ``failure_share`` of them bad.

    It opens for ``open_s``, times ``growth`` for each further trip, up to ``max_open_s``; a trip counts as further
    when it comes before ``calm_s`` of being closed. ``gentle_s``: how often it may be asked all the same, where nobody
    else is left.
    """

    min_calls: int = 5
    failure_share: float = 0.5
    keep_calls: int = 20
    keep_s: float = 600.0
    open_s: float = 5.0
    growth: float = 2.0
    max_open_s: float = 120.0
    calm_s: float = 60.0
    gentle_s: float = 2.0
    probes: int = 1


KEY_SETTINGS = BreakerSettings(
    min_calls=2, keep_calls=2, failure_share=1.0, open_s=60.0, max_open_s=900.0, calm_s=900.0
)
"""A bad key seldom mends itself: two refusals in a row open, and whether it was mended is asked rarely."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call; hand it back with what was found."""

    epoch: int
    is_probe: bool


class Breaker:
    """The state of one target. Every ``begin`` is followed by exactly one ``end``."""

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self._calls: deque[tuple[float, bool]] = deque(maxlen=self._settings.keep_calls)
        self._epoch = 0
        self._open_until_s: float | None = None
        self._trips = 0
        self._closed_s: float | None = None
        self._probing = 0
        self._begun_s: float | None = None

    def __repr__(self) -> str:
        return f"Breaker(trips={self._trips}, calls={len(self._calls)}, open_until_s={self._open_until_s})"

    def state(self, *, now_s: float) -> Circuit:
        if self._open_until_s is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now_s < self._open_until_s else Circuit.HALF_OPEN

    def wait_s(self, *, now_s: float, gentle: bool = False) -> float:
        """Seconds until a call may be made, 0.0 when now; ``gentle`` where no other upstream is left to ask."""
        if self._open_until_s is None:
            return 0.0
        state = self.state(now_s=now_s)
        if state is Circuit.HALF_OPEN and self._probing < self._settings.probes:
            return 0.0
        gentle_s = self._settings.gentle_s
        if gentle:
            return 0.0 if self._begun_s is None else max(0.0, self._begun_s + gentle_s - now_s)
        return self._open_until_s - now_s if state is Circuit.OPEN else gentle_s

    def begin(self, *, now_s: float) -> Permit:
        """A call is made now; the caller has seen that it need not wait."""
        is_probe = self._open_until_s is not None
        self._probing += is_probe
        self._begun_s = now_s
        return Permit(self._epoch, is_probe)

    def end(self, permit: Permit, *, good: bool | None, now_s: float) -> None:
        """The call is over; None: it says nothing. What began before the last change of state says nothing either."""
        if permit.epoch != self._epoch:
            return
        self._probing -= permit.is_probe
        if good is None:
            return
        if permit.is_probe:
            self._judge_probe(good=good, now_s=now_s)
            return
        self._calls.append((now_s, good))
        if not good and self._has_failed_enough(now_s):
            self._trip(now_s)

    def bad(self, *, now_s: float) -> None:
        """An answer that had begun well ended badly."""
        if self._open_until_s is None:
            self.end(Permit(self._epoch, is_probe=False), good=False, now_s=now_s)

    def reset(self) -> None:
        """Forget everything, a trip included: what failed was not the upstream."""
        self._change()
        self._trips, self._open_until_s, self._begun_s = 0, None, None

    def _judge_probe(self, *, good: bool, now_s: float) -> None:
        if not good:
            self._trip(now_s)
            return
        self._change()
        self._open_until_s, self._closed_s = None, now_s

    def _has_failed_enough(self, now_s: float) -> bool:
        recent = [good for at_s, good in self._calls if now_s - at_s <= self._settings.keep_s]
        enough = len(recent) >= self._settings.min_calls
        return enough and recent.count(False) >= self._settings.failure_share * len(recent)

    def _trip(self, now_s: float) -> None:
        settings = self._settings
        is_calm = self._closed_s is not None and now_s - self._closed_s >= settings.calm_s
        self._trips = 1 if is_calm and self._open_until_s is None else self._trips + 1
        self._change()
        open_s = settings.open_s * settings.growth ** min(self._trips - 1, 32)
        self._open_until_s = now_s + min(open_s, settings.max_open_s)

    def _change(self) -> None:
        """Calls under way belong to the past from here on."""
        self._epoch += 1
        self._calls.clear()
        self._probing = 0
