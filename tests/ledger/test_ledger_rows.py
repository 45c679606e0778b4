"""A record comes back from the ledger as it went in, and nothing a record can hold stops the writer."""

import math
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_builders import a_decision, a_ledger, a_record, an_attempt, ids, store_of

from edged.core import Attempt, Decision, Reason, Record, Timings, Usage
from edged.errors import LedgerError
from edged.ledger import find, schema, tail
from edged.ledger.store import Store

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(0, 2**40)
usages = st.builds(
    Usage,
    prompt_tokens=count,
    completion_tokens=count,
    cached_tokens=count,
    reasoning_tokens=count,
    estimated=st.booleans(),
)
attempts = st.builds(
    Attempt,
    backend=text,
    model=text,
    started_s=number,
    total_s=number,
    ttft_s=st.none() | number,
    usage=usages,
    cost_uusd=count,
    cost_estimated=st.booleans(),
    confidence=st.none() | number,
    error=st.none() | text,
)
decisions = st.builds(
    Decision,
    stage=text,
    at_s=number,
    predicted_ttft_s=st.none() | number,
    confidence=st.none() | number,
    threshold=st.none() | number,
)
any_record = st.builds(
    Record,
    id=text,
    received_at=number,
    api=text,
    model=text,
    route=st.none() | text,
    served_model=st.none() | text,
    tenant=text,
    task=st.none() | text,
    stream=st.booleans(),
    confidence=st.none() | number,
    predicted_ttft_s=st.none() | number,
    ttft_s=st.none() | number,
    total_s=number,
    timings=st.builds(Timings, queue_s=number, prefill_s=number, decode_s=number, load_s=number),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    decisions=st.lists(decisions, max_size=3).map(tuple),
    error=st.none() | text,
    prompt_text=st.none() | text,
    answer_text=st.none() | text,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=any_record)
def test_a_record_comes_back_as_it_went_in(record: Record) -> None:
    """Every field of record, attempts and decisions survives the round trip."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.db"
        store_of(path, [record])
        assert [found for _, found in tail(path, 1)] == [record]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_can_be_recorded(tmp_path: Path, reason: Reason) -> None:
    """No word of the closed list is unknown to the ledger."""
    store_of(tmp_path / "l.db", [a_record(reason=reason, decisions=(a_decision(reason=reason),))])
    found = find(tmp_path / "l.db", "req-1")
    assert (found.reason, found.decisions[0].reason) == (reason, reason)


@pytest.mark.parametrize(
    "hostile",
    [
        a_record("bad", model="\ud83d lone", error="nul\0nul"),
        a_record("bad", received_at=math.nan, total_s=math.inf, ttft_s=math.nan, confidence=math.nan),
        a_record("bad", attempts=(an_attempt(cost_uusd=2**80), an_attempt(cost_uusd=2**80, completion_tokens=2**70))),
        a_record("bad", model="m" * 1_000_000, error="e" * 1_000_000, answer_text="a" * 3_000_000),
        a_record("'; DROP TABLE requests; --"),
        a_record("bad\ud800"),
    ],
)
def test_a_hostile_record_does_not_hold_up_the_rows_behind_it(tmp_path: Path, hostile: Record) -> None:
    """Surrogates, NUL, NaN, infinities, huge numbers and texts are stored in a form SQLite takes, within limits."""
    path = tmp_path / "l.db"
    ledger = a_ledger(path, store_text=True)
    ledger.append(hostile)
    ledger.append(a_record("behind"))
    assert ledger.flush(20)
    assert len(ids(path)) == 2
    assert path.stat().st_size + (tmp_path / "l.db-wal").stat().st_size < 3_000_000
    ledger.close(10)


def test_a_value_that_is_not_a_number_is_none_not_zero(tmp_path: Path) -> None:
    """A missing measurement stays missing: NaN is no confidence at all, not a low one."""
    store_of(tmp_path / "l.db", [a_record(confidence=math.nan, ttft_s=math.inf)])
    found = find(tmp_path / "l.db", "req-1")
    assert (found.confidence, found.ttft_s) == (None, None)


def test_an_id_is_found_by_its_beginning_if_that_is_enough(tmp_path: Path) -> None:
    """A whole id wins over a prefix; a prefix must belong to one request; wildcards mean themselves."""
    path = tmp_path / "l.db"
    store_of(path, [a_record("abc"), a_record("abcd"), a_record("abcde"), a_record("x%y")])
    assert find(path, "abc").id == "abc"
    assert find(path, "abcde").id == "abcde"
    assert find(path, "x").id == "x%y"
    with pytest.raises(LedgerError, match=r'"ab" is the beginning of several request ids: abcde, abcd, abc$'):
        find(path, "ab")
    for missing in ("nope", "%", "", "_bc"):
        with pytest.raises(LedgerError, match=f'no request "{missing}"'):
            find(path, missing)


def test_an_older_file_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration runs once, in its own transaction, and keeps the rows."""
    path = tmp_path / "l.db"
    store_of(path, [a_record("kept")])
    steps = schema.MIGRATIONS | {schema.VERSION: ("CREATE TABLE later (id TEXT)",)}
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    connection = sqlite3.connect(path, isolation_level=None)
    schema.migrate(connection)
    schema.migrate(connection)
    assert connection.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
    assert schema.version_of(connection) == schema.VERSION
    connection.close()
    assert ids(path) == ["kept"]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a migration is never left behind."""
    path = tmp_path / "l.db"
    store_of(path, [a_record("kept")])
    old = schema.VERSION
    steps = schema.MIGRATIONS | {old: ("CREATE TABLE half (x)", "no sql")}
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    monkeypatch.setattr(schema, "VERSION", old + 1)
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection)
    assert schema.version_of(connection) == old
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    connection.close()


def test_a_word_from_a_newer_edged_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Reading a row with a reason this version does not know names the request instead of guessing."""
    path = tmp_path / "l.db"
    store_of(path, [a_record()])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE requests SET reason = 'telepathy'")
    connection.close()
    with pytest.raises(LedgerError, match=r"req-1 holds a word this version does not know.*telepathy"):
        find(path, "req-1")


def test_a_duplicate_within_a_batch_writes_no_second_attempts(tmp_path: Path) -> None:
    """Attempts and decisions belong to the row that was kept."""
    store = Store(tmp_path / "l.db")
    one = a_record("one")
    assert store.write([one, replace(one, attempts=(an_attempt(),) * 3), a_record("two")]).new == 2
    store.close()
    assert [len(found.attempts) for _, found in tail(tmp_path / "l.db", 5)] == [1, 1]
