"""How much of one kind of query the box answered itself, over time."""

from dataclasses import dataclass
from pathlib import Path

from edged.ledger.queries import reading


@dataclass(frozen=True, slots=True)
class Share:
    """``local`` of ``requests`` answered ones were answered by the box; ``part`` is a date, or which quarter of all."""

    part: str
    requests: int
    local: int

    @property
    def share(self) -> float:
        return self.local / self.requests if self.requests else 0.0


_ANSWERED = "task = ? AND status = 'ok' AND served_by IN ('local', 'cloud')"
_BY_DAY = f"""
SELECT strftime('%Y-%m-%d', received_at, 'unixepoch') AS part, count(*), sum(served_by = 'local')
FROM requests WHERE {_ANSWERED} GROUP BY 1 ORDER BY min(seq)
"""  # noqa: S608 - constants
_BY_QUARTER = f"""
SELECT part, count(*), sum(served_by = 'local')
FROM (SELECT served_by, ntile(4) OVER (ORDER BY seq) AS part FROM requests WHERE {_ANSWERED}) GROUP BY 1 ORDER BY 1
"""  # noqa: S608 - constants


def shares(path: Path, task: str) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
    """By day (UTC), and by quarters of all answered requests of the task in their order. Raises: LedgerError."""
    with reading(path) as connection:
        days, quarters = (connection.execute(query, (task,)).fetchall() for query in (_BY_DAY, _BY_QUARTER))
    return _shares(days), _shares(quarters)


def _shares(rows: list[tuple[object, int, int]]) -> tuple[Share, ...]:
    return tuple(Share(str(part), requests, local) for part, requests, local in rows)
