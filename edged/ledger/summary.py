"""The split: who answered, why, how fast, for how many tokens and how much money. Definitions: docs/ledger.md."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from edged.ledger.queries import IN_WINDOW, reading, window


class By(StrEnum):
    """What ``split`` can group by."""

    REASON = "reason"
    MODEL = "model"
    ROUTE = "route"
    KEY = "key"
    HOUR = "hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Completion tokens: of served local attempts, of served cloud attempts, and of all that nobody was served."""

    local: int = 0
    cloud: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Nearest-rank percentiles in seconds; None where nothing was measured."""

    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One window of the ledger. ``requests == local + cloud + rejected + cancelled + failed``, always."""

    requests: int = 0
    local: int = 0
    cloud: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)
    tokens: Tokens = Tokens()
    cost_uusd: int = 0
    cost_estimated_uusd: int = 0
    prediction_error: Percentiles = Percentiles()
    local_ttft: Percentiles = Percentiles()
    cloud_ttft: Percentiles = Percentiles()
    groups: Mapping[str, "Split"] | None = None

    def as_json(self) -> dict[str, Any]:
        """The object ``edged split --json`` prints."""
        document: dict[str, Any] = {
            "requests": self.requests,
            "local": self.local,
            "cloud": self.cloud,
            "rejected": self.rejected,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "by_reason": dict(self.by_reason),
            "tokens": {"local": self.tokens.local, "cloud": self.tokens.cloud, "discarded": self.tokens.discarded},
            "cost_usd": self.cost_uusd / 1e6,
            "cost_estimated_usd": self.cost_estimated_uusd / 1e6,
            "prediction_error_s": _percentiles(self.prediction_error),
            "ttft_s": {"local": _percentiles(self.local_ttft), "cloud": _percentiles(self.cloud_ttft)},
        }
        if self.groups is not None:
            document["groups"] = {key: group.as_json() for key, group in self.groups.items()}
        return document


def _percentiles(values: Percentiles) -> dict[str, float | None]:
    return {"p50": values.p50, "p95": values.p95}


def split(path: Path, *, since_s: float | None = None, by: By | None = None, now: float | None = None) -> Split:
    """What happened in the last ``since_s`` seconds (None: ever) before ``now`` (Unix time; None: the present).

    Raises: LedgerError.
    """
    values = window(since_s, now)
    with reading(path) as connection:
        whole = _measure(connection, values, "''").get("", Split(groups=None))
        groups = None if by is None else _measure(connection, values, _KEYS[by])
    return replace(whole, groups=groups)


_KEYS = {
    By.REASON: "reason",
    By.MODEL: "coalesce(served_model, model)",
    By.ROUTE: "coalesce(route, '')",
    By.KEY: "tenant",
    By.HOUR: "strftime('%Y-%m-%dT%H:00Z', received_at, 'unixepoch')",
}

_COUNTS = f"""
SELECT {{key}} AS key, CASE
        WHEN status <> 'ok' THEN status
        WHEN served_by IN ('local', 'cloud') THEN served_by
        ELSE 'failed' END AS fate,
    reason, count(*) AS requests, sum(cost_uusd) AS cost_uusd
FROM requests WHERE {IN_WINDOW} GROUP BY 1, 2, 3
"""  # noqa: S608 - constants

_TOKENS = f"""
SELECT key, CASE outcome WHEN 'served' THEN target WHEN 'audited' THEN outcome ELSE 'discarded' END AS kind,
    sum(completion_tokens) AS tokens, sum(cost_uusd * cost_estimated) AS estimated_uusd
FROM (SELECT seq, {{key}} AS key FROM requests WHERE {IN_WINDOW}) JOIN attempts USING (seq) GROUP BY 1, 2
"""  # noqa: S608 - constants

# Sorted in Python: over 100,000 rows that is several times faster than window functions.
_TTFT = f"""
SELECT {{key}} AS key, served_by, ttft_s FROM requests
WHERE {IN_WINDOW} AND status = 'ok' AND ttft_s IS NOT NULL
"""  # noqa: S608 - constants

# How far off the prediction was, either way, for those that waited for the local model: ``Record.prediction_error_s``.
_ERRORS = f"""
SELECT key, 'error' AS kind, abs(started_s + ttft_s - load_s - predicted_ttft_s) AS error_s
FROM (
    SELECT seq, {{key}} AS key, load_s, predicted_ttft_s FROM requests
    WHERE {IN_WINDOW} AND predicted_ttft_s IS NOT NULL AND reason NOT IN ('cloud_unavailable', 'budget_exhausted')
) JOIN attempts USING (seq) WHERE target = 'local' AND ttft_s IS NOT NULL
"""  # noqa: S608 - constants


def _measure(connection: sqlite3.Connection, values: Mapping[str, float], key: str) -> dict[str, Split]:
    """One Split per value of the SQL expression ``key``, in the order of the keys."""
    counts = _grouped(connection.execute(_COUNTS.format(key=key), values))
    tokens = _grouped(connection.execute(_TOKENS.format(key=key), values))
    ttft = _times(connection.execute(_TTFT.format(key=key), values))
    errors = _times(connection.execute(_ERRORS.format(key=key), values))
    return {
        key: _assemble(rows, tokens.get(key, []), {**ttft.get(key, {}), **errors.get(key, {})})
        for key, rows in sorted(counts.items())
    }


def _grouped(rows: sqlite3.Cursor) -> dict[str, list[sqlite3.Row]]:
    groups: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        groups.setdefault(row["key"] or "", []).append(row)
    return groups


def _times(rows: sqlite3.Cursor) -> dict[str, dict[str, list[float]]]:
    groups: dict[str, dict[str, list[float]]] = {}
    for key, side, ttft_s in rows:
        groups.setdefault(key or "", {}).setdefault(side, []).append(ttft_s)
    return groups


def _ranked(values: list[float]) -> Percentiles:
    if not values:
        return Percentiles()
    values = sorted(values)
    return Percentiles(p50=values[(len(values) * 50 - 1) // 100], p95=values[(len(values) * 95 - 1) // 100])


def _assemble(counts: list[sqlite3.Row], tokens: list[sqlite3.Row], ttft: Mapping[str, list[float]]) -> Split:
    fates: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for row in counts:
        fates[row["fate"]] = fates.get(row["fate"], 0) + row["requests"]
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["requests"]
    kinds = {row["kind"]: row["tokens"] for row in tokens}
    return Split(
        requests=sum(fates.values()),
        local=fates.get("local", 0),
        cloud=fates.get("cloud", 0),
        rejected=fates.get("rejected", 0),
        cancelled=fates.get("cancelled", 0),
        failed=fates.get("failed", 0),
        by_reason=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        tokens=Tokens(**{kind: kinds.get(kind, 0) for kind in ("local", "cloud", "discarded")}),
        cost_uusd=sum(row["cost_uusd"] for row in counts),
        cost_estimated_uusd=sum(row["estimated_uusd"] for row in tokens),
        prediction_error=_ranked(ttft.get("error", [])),
        local_ttft=_ranked(ttft.get("local", [])),
        cloud_ttft=_ranked(ttft.get("cloud", [])),
    )
