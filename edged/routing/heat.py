"""Whether heat slows the box down: a state with hysteresis, from a sensor's readings. The caller passes the time in."""

from dataclasses import dataclass

HOT_C = 80.0
"""Where a sensor names no limit of its own."""

_MARGIN_C = 5.0
_COOL_C = 10.0
_SLOWED = 0.9
_LASTS_S = 60.0
_SLOWEST = 0.25


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the sensors; None where there is none.

    ``limit_c`` is where the hardware begins to slow down; ``clock`` is the current clock over the highest.
    """

    temperature_c: float | None = None
    limit_c: float | None = None
    clock: float | None = None


@dataclass(frozen=True, slots=True)
class Heat:
    """What decisions know of it: ``speed`` is the share of full speed that is left."""

    temperature_c: float | None = None
    throttled: bool = False
    speed: float = 1.0


@dataclass(slots=True)
class Throttle:
    """Throttled once hot and slowed down for ``_LASTS_S`` without a break; no longer once cooler for as long.

    A low clock alone says nothing: an idle box clocks down. Hot and slow together do. One hot minute changes nothing.
    """

    heat: Heat = Heat()
    _since_s: float | None = None

    def note(self, reading: Reading, *, now_s: float) -> Heat:
        """Take a reading; the state it leads to."""
        wants = _is_cooler(reading) if self.heat.throttled else _is_slowed(reading)
        if not wants:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        throttled = self.heat.throttled
        if self._since_s is not None and now_s - self._since_s >= _LASTS_S:
            throttled, self._since_s = not throttled, None
        self.heat = Heat(reading.temperature_c, throttled, self._speed(reading, throttled=throttled))
        return self.heat

    def _speed(self, reading: Reading, *, throttled: bool) -> float:
        """While throttled the lowest clock under heat counts, so that a moment's idling does not look like cooling."""
        if not throttled:
            return 1.0
        clock = reading.clock if reading.clock is not None and _is_hot(reading, 0.0) else self.heat.speed
        return max(_SLOWEST, min(1.0, clock))


def _is_hot(reading: Reading, below_c: float) -> bool:
    limit_c = HOT_C if reading.limit_c is None else reading.limit_c - _MARGIN_C
    return reading.temperature_c is not None and reading.temperature_c >= limit_c - below_c


def _is_slowed(reading: Reading) -> bool:
    return _is_hot(reading, 0.0) and reading.clock is not None and reading.clock < _SLOWED


def _is_cooler(reading: Reading) -> bool:
    return not _is_hot(reading, _COOL_C)
