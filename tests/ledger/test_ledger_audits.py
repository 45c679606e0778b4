"""Audits in the ledger: beside their request, counted once, summed up with an exact interval."""

import math
import sqlite3

import pytest
from ledger_builders import a_ledger, a_record, an_attempt

from edged.binomial import share_interval
from edged.core import Audit, Outcome, Target
from edged.ledger import audits, find, split


def an_audit(request_id="req-1", **fields):
    attempt = an_attempt(target=Target.CLOUD, backend="cloud", outcome=Outcome.AUDITED, cost_uusd=40)
    usual = {"at": 1_790_000_002.0, "attempts": (attempt,), "measure": "words", "agreed": True, "score": 0.75}
    return Audit(request_id=request_id, **{**usual, **fields})


def written(path, *items):
    ledger = a_ledger(path)
    for item in items:
        (ledger.append_audit if isinstance(item, Audit) else ledger.append)(item)
    assert ledger.flush(5)
    ledger.close(5)


def test_an_audits_calls_are_attempts_of_its_request_and_its_cost_is_the_requests(tmp_path):
    """Calls and money are counted in one place; what was served, and the tokens thrown away, stay as they were."""
    path = tmp_path / "ledger.db"
    written(path, a_record(), an_audit())
    found = find(path, "req-1")
    assert [a.outcome for a in found.attempts] == [Outcome.SERVED, Outcome.AUDITED]
    assert found.attempts[1].started_s == pytest.approx(2.0)
    assert found.cost_uusd == 40
    whole = split(path)
    assert (whole.cost_uusd, whole.tokens.local, whole.tokens.cloud, whole.tokens.discarded) == (40, 5, 0, 0)


def test_an_audit_in_a_later_batch_finds_its_request(tmp_path):
    """It comes seconds after its request, or after a restart."""
    path = tmp_path / "ledger.db"
    written(path, a_record())
    written(path, an_audit(agreed=None, measure=None, score=None, error="upstream_busy"))
    assert (audits(path).audited, audits(path).unanswered) == (1, 1)


def test_an_audit_of_an_unknown_request_is_counted_as_dropped(tmp_path):
    """Its request was dropped or has expired; nothing is stored half."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.append_audit(an_audit("gone"))
    ledger.flush(5)
    assert ledger.stats.dropped == 1
    ledger.close(5)


def test_the_summary_groups_by_measure_and_route(tmp_path):
    """Unanswered audits are counted apart and in no share."""
    path = tmp_path / "ledger.db"
    records = [a_record(f"req-{n}", route="auto" if n % 2 else "other") for n in range(6)]
    results = [
        ("words", True, 0.9),
        ("words", False, 0.1),
        ("json", True, 1.0),
        ("json", True, 1.0),
        (None, None, None),
    ]
    found = [an_audit(f"req-{n}", measure=m, agreed=a, score=s) for n, (m, a, s) in enumerate(results)]
    written(path, *records, *found)
    summary = audits(path)
    assert (summary.audited, summary.unanswered, summary.cost_uusd) == (5, 1, 200)
    assert (summary.whole.compared, summary.whole.agreed) == (4, 3)
    assert summary.by_measure["words"].mean_score == pytest.approx(0.5)
    assert summary.by_route["auto"].share == 0.5
    assert summary.as_json()["agreement"]["share"] == 0.75


def test_audits_leave_with_their_request(tmp_path):
    """What expires takes its audit with it."""
    path = tmp_path / "ledger.db"
    written(path, a_record(), an_audit())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("DELETE FROM requests")
    assert connection.execute("SELECT count(*) FROM audits").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 0, 0, 1), (0, 10, 0, 0.30850), (10, 10, 0.69150, 1), (5, 10, 0.18709, 0.81291), (1, 20, 0.00127, 0.24873)],
)
def test_the_interval_is_clopper_and_pearsons(hits, total, low, high):
    """Against published tables."""
    assert share_interval(hits, total) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))


@pytest.mark.parametrize(("hits", "total"), [(3, 7), (180, 200), (40, 41)])
def test_at_its_ends_each_tail_is_two_and_a_half_percent(hits, total):
    """The definition, by the binomial sum itself."""
    low, high = share_interval(hits, total)
    assert sum(_pmf(k, total, low) for k in range(hits, total + 1)) == pytest.approx(0.025, rel=1e-6)
    assert sum(_pmf(k, total, high) for k in range(hits + 1)) == pytest.approx(0.025, rel=1e-6)


def _pmf(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
