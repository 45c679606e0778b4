"""Records with defaults: a test shows only what matters to its rule."""

import sqlite3
from pathlib import Path
from typing import Any

from edged.core import Attempt, Decision, Outcome, Reason, Record, Status, Target, Usage
from edged.ledger import Ledger, Tuning
from edged.ledger.store import Store, connect

NOON = 1_790_000_000.0
FAST = Tuning(commit_every_s=0.02, retry_every_s=0.02)


def an_attempt(*, completion_tokens: int = 5, prompt_tokens: int = 3, **fields: Any) -> Attempt:
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    defaults: dict[str, Any] = {
        "target": Target.LOCAL,
        "backend": "engine",
        "model": "smollm2-135m",
        "outcome": Outcome.SERVED,
        "started_s": 0.0,
        "total_s": 1.0,
        "usage": usage,
    }
    return Attempt(**(defaults | fields))


def a_cost(cost_uusd: int) -> Attempt:
    """A cloud attempt that cost so much."""
    return an_attempt(target=Target.CLOUD, backend="cloud", cost_uusd=cost_uusd)


def a_decision(**fields: Any) -> Decision:
    defaults: dict[str, Any] = {"target": Target.LOCAL, "reason": Reason.WITHIN_BUDGET, "stage": "admission"}
    return Decision(**(defaults | fields))


def a_record(request_id: str = "req-1", **fields: Any) -> Record:
    defaults: dict[str, Any] = {
        "received_at": NOON,
        "api": "openai",
        "model": "auto",
        "status": Status.OK,
        "served_by": Target.LOCAL,
        "reason": Reason.WITHIN_BUDGET,
        "route": "auto",
        "attempts": (an_attempt(),),
        "decisions": (a_decision(),),
    }
    return Record(id=request_id, **(defaults | fields))


def records(count: int, prefix: str = "req", **fields: Any) -> list[Record]:
    return [a_record(f"{prefix}-{number:05}", **fields) for number in range(count)]


def a_ledger(path: Path, **fields: Any) -> Ledger:
    return Ledger.open(path, **({"keep_days": 30, "store_text": False, "tuning": FAST} | fields))


def connect_unsynced(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def store_of(path: Path, rows: list[Record]) -> None:
    """A closed ledger file that holds these records, made without waiting for the disk."""
    store = Store(path, connect=connect_unsynced)
    store.write(rows)
    store.close()


def ids(path: Path) -> list[str]:
    """Request ids in the order they were written, read without edged's own queries."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT id FROM requests ORDER BY seq")]
    finally:
        connection.close()
