"""When a budget's new day begins: at midnight, as far as the clock can be believed. Pure: both clocks are arguments.

The wall clock of a small box is wrong in every way: unset after a boot, set by the network a minute later, set back,
or far ahead. ``elapsed_s`` (a clock that only runs, sleep included) is always right, but says nothing of the time the
box was off. So a day opens

1. when the wall clock's date has moved forward, and the clock has not run ahead of ``elapsed_s`` since it was last
   believed;
2. when it has run ahead, by one step: once per start, and again after a long day of running;
3. after a long day of running (and of being off, as far as the clock can tell), whatever the date says.

However often the clock is set, steps open at most one day per start and one per 26 hours; and a clock that once showed
the year 2099 delays the next day by 26 hours at most.
"""

from collections.abc import Callable

from edged.core import DayMark

LONGEST_DAY_S = 26 * 3_600.0
"""No calendar has a longer day, changes of summer time included."""
DAY_S = 86_400.0
_DRIFT_S = 600.0


def utc_date(wall_s: float) -> int:
    """The calendar day in UTC, counted from 1970."""
    return int(wall_s // DAY_S)


class Days:
    """The current day. ``date_of`` reads a calendar day off the wall clock; ``mark`` is an earlier run's."""

    def __init__(
        self,
        *,
        wall_s: float,
        elapsed_s: float,
        mark: DayMark | None = None,
        date_of: Callable[[float], int] = utc_date,
    ) -> None:
        self._date_of = date_of
        self._stepped_s: float | None = None
        if mark is None:
            mark = DayMark(number=1, date=date_of(wall_s), open_s=0.0, wall_s=wall_s)
        self.number, self.date = mark.number, mark.date
        self._opened_s = elapsed_s - mark.open_s - max(0.0, wall_s - mark.wall_s)
        self._believe(wall_s, elapsed_s)
        if date_of(wall_s) > self.date or elapsed_s - self._opened_s >= LONGEST_DAY_S:
            self._stepped_s = elapsed_s
            self._open(wall_s, elapsed_s)

    def __repr__(self) -> str:
        return f"Days(number={self.number}, date={self.date})"

    def look(self, *, wall_s: float, elapsed_s: float) -> bool:
        """Read the clocks; True where a new day has begun."""
        if elapsed_s - self._opened_s < LONGEST_DAY_S:
            if self._date_of(wall_s) <= self.date:
                return False
            if self._ahead_s(wall_s, elapsed_s) > _DRIFT_S:
                if self._stepped_s is not None and elapsed_s - self._stepped_s < LONGEST_DAY_S:
                    return False
                self._stepped_s = elapsed_s
        self._open(wall_s, elapsed_s)
        return True

    def mark(self, *, wall_s: float, elapsed_s: float) -> DayMark:
        """What to keep for the next start."""
        return DayMark(number=self.number, date=self.date, open_s=elapsed_s - self._opened_s, wall_s=wall_s)

    def left_s(self, *, wall_s: float, elapsed_s: float) -> float:
        """About how long until the next day: to midnight, or to the end of a long day where the clock was wrong."""
        longest_s = max(0.0, LONGEST_DAY_S - (elapsed_s - self._opened_s))
        if self._date_of(wall_s) != self.date:
            return longest_s
        return min(longest_s, self._midnight_s(wall_s))

    def _midnight_s(self, wall_s: float) -> float:
        """Seconds to the next change of date, by halving: zones have their own midnights."""
        near, far = 0.0, LONGEST_DAY_S
        while far - near > 1:
            middle = (near + far) / 2
            near, far = (near, middle) if self._date_of(wall_s + middle) > self.date else (middle, far)
        return far

    def _open(self, wall_s: float, elapsed_s: float) -> None:
        self.number += 1
        self.date = self._date_of(wall_s)
        self._opened_s = elapsed_s
        self._believe(wall_s, elapsed_s)

    def _believe(self, wall_s: float, elapsed_s: float) -> None:
        self._anchor = wall_s - elapsed_s

    def _ahead_s(self, wall_s: float, elapsed_s: float) -> float:
        return wall_s - elapsed_s - self._anchor
