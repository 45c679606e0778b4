"""A provider's "not before" is understood in every form and never shortened."""

from datetime import UTC, datetime

import pytest

from edged.upstream.cooldown import MAX_COOLDOWN_S, Cooldowns, retry_after_s

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("99999999", MAX_COOLDOWN_S),
        ("9" * 400, None),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("NaN", None),
        ("inf", None),
        ("Mon, 04 May 2026 12:00:30 GMT", 30.0),
        ("Mon, 04 May 2026 11:00:00 GMT", 0.0),
        ("Monday, 04-May-26 12:00:30 GMT", 30.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_COOLDOWN_S),
        ("Mon, 99 May 2026 12:00:30 GMT", None),
        ("Mon, 04 May 2026 12:00:30 +9999", None),
    ],
)
def test_every_form_of_retry_after_is_parsed_and_clamped(value, expected):
    """Seconds, fractions and dates count; the past is zero, the absurd is clamped, garbage says nothing (F01)."""
    assert retry_after_s({"retry-after": value}, now=NOW) == expected


def test_a_date_is_measured_against_the_answers_own_clock():
    """A box whose clock is an hour behind still waits the 30 seconds the provider meant (G15)."""
    headers = {"retry-after": "Mon, 04 May 2026 13:00:30 GMT", "date": "Mon, 04 May 2026 13:00:00 GMT"}
    assert retry_after_s(headers, now=NOW) == 30.0


def test_milliseconds_win_over_whole_seconds():
    """``retry-after-ms`` is the finer word of the same provider."""
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "1"}, now=NOW) == 0.25


@pytest.mark.parametrize(
    ("reset", "expected"),
    [("1s", 1.0), ("6m0s", 360.0), ("20ms", 0.02), ("2m59.56s", 179.56), ("1h2m", 3600.0), ("12", 12.0), ("x", None)],
)
def test_an_exhausted_rate_limit_tells_its_reset(reset, expected):
    """Without Retry-After, the reset of the limit that has nothing left counts."""
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    assert retry_after_s(headers, now=NOW) == expected


def test_a_limit_with_room_left_does_not_count():
    """A reset time alone is no request to wait."""
    headers = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "30s"}
    assert retry_after_s(headers, now=NOW) is None


def test_a_later_shorter_word_does_not_replace_a_longer_one():
    """The maximum of all deadlines is kept, per target (F01)."""
    cooldowns = Cooldowns()
    cooldowns.extend(("a", "m"), 10.0, now_s=100.0)
    cooldowns.extend(("a", "m"), 1.0, now_s=101.0)
    assert cooldowns.left_s(("a", "m"), now_s=102.0) == 8.0
    assert cooldowns.left_s(("a", "m"), now_s=111.0) == 0.0
    assert cooldowns.left_s(("a", "other"), now_s=102.0) == 0.0
