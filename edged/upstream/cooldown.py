"""When a provider said "not before": ``Retry-After`` in all its forms, and the longest word kept per target.

Pure: clocks are arguments.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_COOLDOWN_S = 3_600.0
_NUMBER = re.compile(r"\d{1,18}(\.\d{1,18})?")
_DURATION = re.compile(
    r"(?:(\d{1,6})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds a provider asks to wait, within [0, MAX_COOLDOWN_S]; None where it says nothing usable.

    ``headers`` has lower-case or case-insensitive keys. A date is measured against the answer's own ``Date`` where
    there is one, since a box without a real-time clock may be hours off; ``now`` serves otherwise. Forms: RFC 9110
    seconds and dates, fractions, ``retry-after-ms``, and ``x-ratelimit-reset-*`` of an exhausted limit ("1m30s").
    """
    found = _milliseconds(headers.get("retry-after-ms"))
    if found is None:
        found = _seconds_or_date(headers.get("retry-after"), headers, now)
    if found is None:
        found = _exhausted_reset(headers)
    return None if found is None else min(max(found, 0.0), MAX_COOLDOWN_S)


def _number(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _milliseconds(text: str | None) -> float | None:
    value = _number(text)
    return None if value is None else value / 1000


def _seconds_or_date(text: str | None, headers: Mapping[str, str], now: datetime) -> float | None:
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    until = _date(text)
    if until is None:
        return None
    return (until - (_date(headers.get("date", "")) or now)).total_seconds()


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _exhausted_reset(headers: Mapping[str, str]) -> float | None:
    """The longest reset time among the limits with nothing remaining."""
    resets = [
        _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _duration(text: str) -> float | None:
    text = text.strip()
    if (seconds := _number(text)) is not None:
        return seconds
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


class Cooldowns:
    """Until when each target asked to be left alone; a later, shorter word never replaces a longer one."""

    def __init__(self) -> None:
        self._until_s: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"Cooldowns(targets={len(self._until_s)})"

    def extend(self, target: tuple[str, str], wait_s: float, *, now_s: float) -> None:
        """Leave ``target`` alone for ``wait_s`` from ``now_s``, monotonic."""
        self._until_s[target] = max(self._until_s.get(target, -math.inf), now_s + wait_s)

    def left_s(self, target: tuple[str, str], *, now_s: float) -> float:
        """Seconds still to wait, 0.0 when the target may be asked."""
        return max(0.0, self._until_s.get(target, -math.inf) - now_s)
