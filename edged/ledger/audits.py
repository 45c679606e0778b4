"""Audits in the ledger: written beside the request they are about, and summed up for ``edged audit``.

An audit's calls become further attempts of its request, so that calls and costs are counted in one place; the row in
``audits`` says what the comparison gave.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edged.binomial import share_interval
from edged.core import Audit
from edged.ledger.queries import IN_WINDOW, reading, window
from edged.ledger.rows import Row, attempt_row, audit_row


def next_attempt(connection: sqlite3.Connection, seq: int) -> int:
    """The number of a request's next attempt."""
    return int(connection.execute("SELECT count(*) FROM attempts WHERE seq = ?", (seq,)).fetchone()[0])


def insert_audit(connection: sqlite3.Connection, audit: Audit) -> list[Row]:
    """Write the row and add the cost to its request; the rows of its attempts, none where the request is unknown."""
    found = connection.execute("SELECT seq, received_at FROM requests WHERE id = ?", (audit.request_id,)).fetchone()
    if found is None:
        return []
    seq, received_at = int(found[0]), float(found[1])
    row = audit_row(audit)
    if connection.execute(_INSERT, row | {"seq": seq}).rowcount == 0:
        return []
    connection.execute("UPDATE requests SET cost_uusd = cost_uusd + ? WHERE seq = ?", (row["cost_uusd"], seq))
    first, late_s = next_attempt(connection, seq), max(0.0, audit.at - received_at)
    rows = [attempt_row(attempt, first + n) | {"seq": seq} for n, attempt in enumerate(audit.attempts)]
    return [one | {"started_s": float(one["started_s"] or 0) + late_s} for one in rows]


_INSERT = """
INSERT INTO audits (seq, at, measure, agreed, score, cost_uusd, error)
VALUES (:seq, :at, :measure, :agreed, :score, :cost_uusd, :error) ON CONFLICT (seq) DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Answers compared by one measure: how many, how many agreed, and the exact 95 % interval of that share."""

    compared: int
    agreed: int
    mean_score: float | None = None

    @property
    def share(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    @property
    def interval(self) -> tuple[float, float]:
        return share_interval(self.agreed, self.compared)

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "compared": self.compared,
            "agreed": self.agreed,
            "share": self.share,
            "low": low,
            "high": high,
            "mean_score": self.mean_score,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Audits:
    """One window of audits; ``unanswered`` are those the cloud failed or that were cancelled."""

    audited: int = 0
    unanswered: int = 0
    cost_uusd: int = 0
    whole: Agreed = Agreed(compared=0, agreed=0)
    by_measure: Mapping[str, Agreed] = field(default_factory=dict)
    by_route: Mapping[str, Agreed] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object ``edged audit --json`` prints."""
        return {
            "audited": self.audited,
            "unanswered": self.unanswered,
            "cost_usd": self.cost_uusd / 1e6,
            "agreement": self.whole.as_json(),
            "by_measure": {key: value.as_json() for key, value in self.by_measure.items()},
            "by_route": {key: value.as_json() for key, value in self.by_route.items()},
        }


_SUMMARY = f"""
SELECT count(*) AS audited, coalesce(sum(agreed IS NULL), 0) AS unanswered,
    coalesce(sum(audits.cost_uusd), 0) AS cost_uusd
FROM audits JOIN requests USING (seq) WHERE {IN_WINDOW}
"""  # noqa: S608 - constants

_AGREED = f"""
SELECT {{key}} AS key, count(*) AS compared, coalesce(sum(agreed), 0) AS agreed, avg(score) AS mean_score
FROM audits JOIN requests USING (seq) WHERE {IN_WINDOW} AND agreed IS NOT NULL GROUP BY 1 ORDER BY 1
"""  # noqa: S608 - constants


def audits(path: Path, *, since_s: float | None = None, now: float | None = None) -> Audits:
    """The audits of the requests of the last ``since_s`` seconds (None: ever). Raises: LedgerError."""
    values = window(since_s, now)
    with reading(path) as connection:
        counts = connection.execute(_SUMMARY, values).fetchone()
        whole = _agreed(connection, values, "''").get("", Agreed(compared=0, agreed=0))
        by_measure = _agreed(connection, values, "measure")
        by_route = _agreed(connection, values, "coalesce(route, '')")
    return Audits(
        audited=counts["audited"],
        unanswered=counts["unanswered"],
        cost_uusd=counts["cost_uusd"],
        whole=whole,
        by_measure=by_measure,
        by_route=by_route,
    )


def _agreed(connection: sqlite3.Connection, values: Mapping[str, float], key: str) -> dict[str, Agreed]:
    return {
        row["key"] or "": Agreed(compared=row["compared"], agreed=row["agreed"], mean_score=row["mean_score"])
        for row in connection.execute(_AGREED.format(key=key), values)
    }
