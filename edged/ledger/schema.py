"""The tables of the ledger file, and how an older file becomes a current one.

``requests`` holds one row per ``core.Record``, ``attempts`` and ``decisions`` one row each, in order, under its
``seq``. ``seq`` only ever grows; ``received_at`` is a wall-clock label; ``clock_s`` is how long the ledger had been
running in all when the row was written: it never runs ahead of true time, so it can be trusted where a label cannot.
``reservations`` holds calls under way, ``spending`` what each budget stands at per day, ``budget_day`` the current day.
``audits`` holds what a comparison of a request's answer gave; the calls it took are further attempts of the request.
"""

import sqlite3

APPLICATION_ID = 0x45444744  # "EDGD", bytes 68-71 of the file
VERSION = 6
DAWN = 1_704_067_200.0  # 2024-01-01: a label before it was written by a clock that was not yet set

_VERSION_1 = (
    """
    CREATE TABLE requests (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        received_at REAL NOT NULL,
        clock_s REAL NOT NULL,
        api TEXT NOT NULL,
        model TEXT NOT NULL,
        route TEXT,
        served_model TEXT,
        tenant TEXT NOT NULL,
        task TEXT,
        locality TEXT NOT NULL,
        stream INTEGER NOT NULL,
        status TEXT NOT NULL,
        served_by TEXT NOT NULL,
        reason TEXT NOT NULL,
        confidence REAL,
        predicted_ttft_s REAL,
        ttft_s REAL,
        total_s REAL NOT NULL,
        queue_s REAL NOT NULL,
        prefill_s REAL NOT NULL,
        decode_s REAL NOT NULL,
        cost_uusd INTEGER NOT NULL,
        error TEXT,
        prompt_text TEXT,
        answer_text TEXT
    )
    """,
    "CREATE INDEX requests_received_at ON requests (received_at)",
    """
    CREATE TABLE attempts (
        seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
        n INTEGER NOT NULL,
        target TEXT NOT NULL,
        backend TEXT NOT NULL,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        started_s REAL NOT NULL,
        total_s REAL NOT NULL,
        ttft_s REAL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        tokens_estimated INTEGER NOT NULL,
        cost_uusd INTEGER NOT NULL,
        cost_estimated INTEGER NOT NULL,
        confidence REAL,
        error TEXT,
        PRIMARY KEY (seq, n)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE decisions (
        seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
        n INTEGER NOT NULL,
        target TEXT NOT NULL,
        reason TEXT NOT NULL,
        stage TEXT NOT NULL,
        at_s REAL NOT NULL,
        predicted_ttft_s REAL,
        confidence REAL,
        threshold REAL,
        PRIMARY KEY (seq, n)
    ) WITHOUT ROWID
    """,
)

_MONEY = (
    """
    CREATE TABLE reservations (
        id TEXT PRIMARY KEY,
        request_id TEXT NOT NULL,
        upstream TEXT NOT NULL,
        model TEXT NOT NULL,
        route TEXT NOT NULL,
        tenant TEXT NOT NULL,
        amount_uusd INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE spending (
        day INTEGER NOT NULL,
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        limit_uusd INTEGER,
        spent_uusd INTEGER NOT NULL,
        estimated_uusd INTEGER NOT NULL,
        PRIMARY KEY (day, scope, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE budget_day (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        day INTEGER NOT NULL,
        date INTEGER NOT NULL,
        open_s REAL NOT NULL,
        wall_s REAL NOT NULL
    )
    """,
    "ALTER TABLE attempts ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN provider_cost_uusd INTEGER",
    "ALTER TABLE attempts ADD COLUMN computed_cost_uusd INTEGER",
)

_AUDITS = """
    CREATE TABLE audits (
        seq INTEGER PRIMARY KEY REFERENCES requests (seq) ON DELETE CASCADE,
        at REAL NOT NULL,
        measure TEXT,
        agreed INTEGER,
        score REAL,
        cost_uusd INTEGER NOT NULL,
        error TEXT
    )
    """

_PREDICTIONS = (
    "ALTER TABLE requests ADD COLUMN task_source TEXT",
    "ALTER TABLE attempts ADD COLUMN saved_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE decisions ADD COLUMN cloud_ttft_s REAL",
    "ALTER TABLE decisions ADD COLUMN speed REAL",
)

# Statements that lead from the version they stand under to the next one; a released entry is never edited.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    0: _VERSION_1,
    1: ("ALTER TABLE requests ADD COLUMN load_s REAL NOT NULL DEFAULT 0",),
    2: _MONEY,
    3: (_AUDITS,),
    4: _PREDICTIONS,
    5: ("ALTER TABLE requests ADD COLUMN redacted TEXT",),
}


def version_of(connection: sqlite3.Connection) -> int:
    """The schema version of an open file; 0 is an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to ``VERSION``, one transaction per step, so that a kill in between leaves a whole older file."""
    while (version := version_of(connection)) < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version_of(connection) == version:  # another process may have been faster
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
