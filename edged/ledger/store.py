"""The writer's side of the file: one connection, used by one thread, closed and reopened when something is wrong.

``synchronous = FULL`` makes every commit survive a power cut; in WAL mode ``NORMAL`` would not sync until the next
checkpoint and could lose minutes. The writer commits in batches, so that is a sync or two a second at most.
"""

import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edged.core import Audit, Record
from edged.ledger import money
from edged.ledger.audits import insert_audit
from edged.ledger.files import create_private, identity, is_corruption, set_aside, size_bytes
from edged.ledger.money import Notes
from edged.ledger.rows import Row, attempt_row, decision_row, request_row
from edged.ledger.schema import APPLICATION_ID, DAWN, VERSION, migrate, version_of

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 1.0
JOURNAL_LIMIT_BYTES = 4 * 2**20
MAX_WAL_BYTES = 128 * 2**20
EXPIRY_BATCH_ROWS = 500
DAY_S = 86_400.0

_BIRTH_PRAGMAS = (
    "auto_vacuum = INCREMENTAL",  # takes effect only as the very first write to a file
    f"application_id = {APPLICATION_ID}",
)
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    f"journal_size_limit = {JOURNAL_LIMIT_BYTES}",
    "foreign_keys = ON",
    "secure_delete = ON",  # an expired prompt is gone, not just unlinked
)

Connect = Callable[[Path], sqlite3.Connection]


class Malformed(sqlite3.DatabaseError):
    """The quick check found the file broken."""


class ReaderInTheWay(sqlite3.OperationalError):
    """Another program reads the file without end, so its write-ahead log cannot be emptied and has reached its cap."""


class Written(NamedTuple):
    """What one transaction did: rows that are new, and records a bug elsewhere made impossible to store."""

    new: int
    refused: int


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for writing, in autocommit mode: every transaction is begun by name."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        born = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        for pragma in _PRAGMAS if born else _BIRTH_PRAGMAS + _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


class Store:
    """Opens, writes, thins out and repairs one ledger file.

    Every method may raise sqlite3.Error, OSError or LedgerError.
    """

    def __init__(
        self,
        path: Path,
        *,
        connect: Connect = connect,
        max_wal_bytes: int = MAX_WAL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._connect = connect
        self._max_wal_bytes = max_wal_bytes
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._sound: tuple[int, int] | None = None
        self._standing = Notes()
        self._reopened = False
        self.lost = False  # an earlier file was given up, with what it knew
        self._clock_base_s = 0.0
        self._opened_at_s = clock()

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "open"
        return f"<Store {self._path.name} {state} wal={self.wal_bytes}>"

    @property
    def wal_bytes(self) -> int:
        return size_bytes(self._path.with_name(self._path.name + "-wal"))

    @property
    def bytes(self) -> int:
        """Disk taken by the file and its write-ahead log."""
        return size_bytes(self._path) + self.wal_bytes

    @property
    def clock_s(self) -> float:
        """Seconds this ledger has been running in all, over restarts."""
        return self._clock_base_s + self._clock() - self._opened_at_s

    def open(self) -> None:
        """Check the file, move a broken or newer one aside, and be ready to write."""
        try:
            self._use(self._checked())
        except sqlite3.Error as exc:
            if not (isinstance(exc, Malformed) or is_corruption(exc)):
                raise
            self.start_over("corrupt", str(exc))

    def start_over(self, label: str, why: str) -> None:
        """Move the file aside and begin a new one: serving goes on whatever the old file has become."""
        self.close()
        aside = set_aside(self._path, label)
        self.lost = True
        log.warning("ledger moved aside: why=%r kept_as=%s", why, aside.name)
        self._use(self._checked())

    def close(self) -> None:
        """Give up the connection; what was not committed is lost. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def write(self, records: Sequence[Record | Audit], notes: Notes | None = None) -> Written:
        """Add records and notes of money in one transaction; a record whose id is there already is left as it is.

        Into a file opened again goes all that stands, so that one that broke or vanished takes no money with it.
        """
        connection = self._ready_connection()
        anew = self._reopened and self._standing.mark is not None
        noted = self._standing.standing() if anew else Notes()
        if notes is not None:
            noted.add(notes)
        self._bound_wal(connection)
        clock_s = self.clock_s
        connection.execute("BEGIN IMMEDIATE")
        try:
            money.write(connection, noted, are_all=anew)
            written = _insert(connection, records, clock_s)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self._standing.add(noted)
        self._standing.settle()
        self._reopened = False
        return written

    def expiry(self, *, keep_s: float, now: float) -> Iterator[int]:
        """Delete what is older than ``keep_s``, yielding the count after every small transaction.

        A row goes when the ledger itself has run that long since, or when its label says so. Labels are only believed
        by a day per pass, and not at all before DAWN, so that a clock gone wrong for an hour cannot empty the ledger.
        """
        connection = self._ready_connection()
        (oldest,) = connection.execute(
            "SELECT min(received_at) FROM requests WHERE received_at >= ?", (DAWN,)
        ).fetchone()
        horizon = min(now - keep_s, (oldest or now) + DAY_S)
        limits = {"dawn": DAWN, "horizon": horizon, "clock": self.clock_s - keep_s, "rows": EXPIRY_BATCH_ROWS}
        while deleted := self._delete(limits):
            yield deleted

    def checkpoint(self) -> bool:
        """Copy the write-ahead log into the file and empty it; False while a reader holds on to it."""
        return _checkpoint(self._ready_connection())

    def _checked(self) -> sqlite3.Connection:
        create_private(self._path)
        connection = self._connect(self._path)
        try:
            self._check(connection)
            if version_of(connection) <= VERSION:
                migrate(connection)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Look for damage once per file: opening it again after a full disk must not read all of it again."""
        this = identity(self._path)
        if this == self._sound:
            return
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Malformed(str(verdict))
        self._sound = this

    def _use(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._reopened = True
        self._identity = identity(self._path)
        if (version := version_of(connection)) > VERSION:
            self.start_over(f"schema{version}", f"written by a newer edged (schema {version})")
            return
        (latest,) = connection.execute("SELECT clock_s FROM requests ORDER BY seq DESC LIMIT 1").fetchone() or (0.0,)
        self._clock_base_s, self._opened_at_s = max(self.clock_s, latest), self._clock()

    def _ready_connection(self) -> sqlite3.Connection:
        """The connection, opened again where it was closed or where the file under it was moved or deleted."""
        if self._connection is not None and identity(self._path) != self._identity:
            log.warning("ledger file was moved or deleted: a new one is begun")
            self.close()
        if self._connection is None:
            self.open()
        if self._connection is None:
            raise sqlite3.OperationalError("the ledger is closed")
        return self._connection

    def _bound_wal(self, connection: sqlite3.Connection) -> None:
        if self.wal_bytes <= self._max_wal_bytes or _checkpoint(connection):
            return
        raise ReaderInTheWay(f"write-ahead log at {self.wal_bytes} bytes and a reader keeps it from being emptied")

    def _delete(self, limits: Mapping[str, float]) -> int:
        connection = self._ready_connection()
        deleted = connection.execute(_EXPIRE, limits).rowcount
        connection.executescript(f"PRAGMA incremental_vacuum({EXPIRY_BATCH_ROWS})")  # execute would free one page only
        return deleted


# The first arm looks only at the oldest rows: clock_s grows with seq, so nothing behind them can be older.
_EXPIRE = """
DELETE FROM requests WHERE seq IN (
    SELECT seq FROM (SELECT seq, clock_s FROM requests ORDER BY seq LIMIT :rows) WHERE clock_s < :clock
    UNION
    SELECT seq FROM (SELECT seq FROM requests WHERE received_at >= :dawn AND received_at < :horizon LIMIT :rows)
)
"""


def _insert(connection: sqlite3.Connection, records: Sequence[Record | Audit], clock_s: float) -> Written:
    new = refused = 0
    attempts: list[Row] = []
    decisions: list[Row] = []
    audits = [record for record in records if isinstance(record, Audit)]
    for record in records:
        if isinstance(record, Audit):
            continue
        try:
            row = request_row(record, clock_s)
            own_attempts = [attempt_row(attempt, n) for n, attempt in enumerate(record.attempts)]
            own_decisions = [decision_row(decision, n) for n, decision in enumerate(record.decisions)]
        except (AttributeError, TypeError, ValueError):
            log.exception("ledger refused a misshapen record")
            refused += 1
            continue
        cursor = connection.execute(f"{_insert_into('requests', tuple(row))} ON CONFLICT (id) DO NOTHING", row)
        if cursor.rowcount == 0:
            continue
        new += 1
        attempts += (one | {"seq": cursor.lastrowid} for one in own_attempts)
        decisions += (one | {"seq": cursor.lastrowid} for one in own_decisions)
    _insert_all(connection, "attempts", attempts)
    _insert_all(connection, "decisions", decisions)
    for audit in audits:
        rows = insert_audit(connection, audit)
        refused += not rows
        _insert_all(connection, "attempts", rows)
    return Written(new, refused)


def _insert_all(connection: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    if rows:
        connection.executemany(_insert_into(table, tuple(rows[0])), rows)


@functools.cache
def _insert_into(table: str, columns: tuple[str, ...]) -> str:
    values = ", ".join(f":{column}" for column in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - our own names


def _checkpoint(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return int(busy) == 0
