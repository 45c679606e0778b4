"""Reading the ledger: short read-only connections that never hold up the writer.

Every function takes the file's path, reads in one transaction, closes, and only then computes.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.core import Record
from edged.errors import LedgerError
from edged.ledger.rows import to_record
from edged.ledger.schema import DAWN, VERSION, version_of

READ_TIMEOUT_S = 5.0
CANDIDATES_SHOWN = 5

# Rows labelled before DAWN were written by an unset clock: they belong to the window if the ledger's own clock says so.
IN_WINDOW = """(received_at >= :since OR (received_at < :dawn
    AND clock_s >= (SELECT clock_s FROM requests ORDER BY seq DESC LIMIT 1) - :window_s))"""


class NoLedger(LedgerError):
    """Nothing has been recorded yet."""


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection inside one transaction, so that all queries see the same rows.

    Raises: NoLedger where there is no file or no row was ever written; LedgerError where it cannot be read.
    """
    try:
        if not path.exists():
            raise NoLedger("there is no ledger yet: it begins with the first request")
        uri = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=READ_TIMEOUT_S)
    except (sqlite3.Error, OSError) as exc:
        raise LedgerError(f"the ledger cannot be opened: {exc}") from exc
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("BEGIN")
        _check_version(version_of(connection))
        yield connection
    except sqlite3.Error as exc:
        raise LedgerError(f"the ledger cannot be read: {exc}") from exc
    finally:
        connection.close()


def _check_version(version: int) -> None:
    if version == 0:
        raise NoLedger("the ledger is still empty: it begins with the first request")
    if version != VERSION:
        other = "a newer" if version > VERSION else "an older"
        raise LedgerError(f"the ledger was written by {other} edged (schema {version}, this one reads {VERSION})")


def window(since_s: float | None, now: float | None = None) -> dict[str, float]:
    """The parameters of IN_WINDOW for the last ``since_s`` seconds, or for everything."""
    if since_s is None:
        return {"since": -1e18, "dawn": DAWN, "window_s": 0.0}
    return {"since": (time.time() if now is None else now) - since_s, "dawn": DAWN, "window_s": since_s}


def tail(path: Path, count: int) -> tuple[tuple[int, Record], ...]:
    """The last ``count`` records, oldest first, each with its ``seq``. Raises: LedgerError."""
    with reading(path) as connection:
        rows = connection.execute("SELECT * FROM requests ORDER BY seq DESC LIMIT ?", (count,)).fetchall()
        return tuple(_records(connection, rows[::-1]))


def after(path: Path, seq: int, *, limit: int = 500) -> tuple[tuple[int, Record], ...]:
    """Up to ``limit`` records behind ``seq``, oldest first, each with its own: call again with the last for more.

    Raises: LedgerError.
    """
    with reading(path) as connection:
        rows = connection.execute("SELECT * FROM requests WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)).fetchall()
        return tuple(_records(connection, rows))


def last_seq(path: Path) -> int:
    """The newest row's number; 0 where there is none. Raises: LedgerError."""
    with reading(path) as connection:
        return int(connection.execute("SELECT coalesce(max(seq), 0) FROM requests").fetchone()[0])


def find(path: Path, request_id: str) -> Record:
    """The record of this id, or of the only id that begins so.

    Raises: LedgerError where none or several match.
    """
    with reading(path) as connection:
        rows = connection.execute("SELECT * FROM requests WHERE id = ?", (request_id,)).fetchall()
        if not rows:
            rows = connection.execute(
                "SELECT * FROM requests WHERE substr(id, 1, length(:id)) = :id ORDER BY seq DESC LIMIT :rows",
                {"id": request_id, "rows": CANDIDATES_SHOWN + 1},
            ).fetchall()
        found = [record for _, record in _records(connection, rows)]
    if not found or not request_id:
        raise LedgerError(f'no request "{request_id}" in the ledger')
    if len(found) > 1:
        names = ", ".join(record.id for record in found[:CANDIDATES_SHOWN])
        more = ", ..." if len(found) > CANDIDATES_SHOWN else ""
        raise LedgerError(f'"{request_id}" is the beginning of several request ids: {names}{more}')
    return found[0]


def _records(connection: sqlite3.Connection, rows: list[sqlite3.Row]) -> Iterator[tuple[int, Record]]:
    for row in rows:
        seq = int(row["seq"])
        attempts = connection.execute("SELECT * FROM attempts WHERE seq = ? ORDER BY n", (seq,)).fetchall()
        decisions = connection.execute("SELECT * FROM decisions WHERE seq = ? ORDER BY n", (seq,)).fetchall()
        try:
            yield seq, to_record(row, attempts, decisions)
        except ValueError as exc:
            raise LedgerError(f"request {row['id']} holds a word this version does not know: {exc}") from exc
