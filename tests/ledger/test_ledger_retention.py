"""Old rows go in small steps, and no clock, wherever it jumps, can take the young ones with them."""

import sqlite3
import time
from pathlib import Path

from ledger_builders import NOON, a_ledger, a_record, ids, records, store_of

from edged.ledger import Tuning, split, tail
from edged.ledger.store import DAY_S, EXPIRY_BATCH_ROWS, Store

KEEP_S = 30 * DAY_S


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def expire(store: Store, *, now: float) -> list[int]:
    return list(store.expiry(keep_s=KEEP_S, now=now))


def count(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()


def test_rows_past_their_days_go_with_everything_under_them(tmp_path: Path) -> None:
    """A request older than keep_days is deleted with its attempts and decisions; a younger one stays."""
    store = Store(tmp_path / "l.db")
    store.write([a_record("old", received_at=NOON - KEEP_S - 1), a_record("young", received_at=NOON - KEEP_S + 1)])
    assert expire(store, now=NOON) == [1]
    store.close()
    assert ids(tmp_path / "l.db") == ["young"]
    assert (count(tmp_path / "l.db", "attempts"), count(tmp_path / "l.db", "decisions")) == (1, 1)


def test_deletes_come_in_small_batches(tmp_path: Path) -> None:
    """No transaction of the retention deletes more than a small batch, so writes are never kept waiting."""
    store = Store(tmp_path / "l.db")
    store.write(records(2 * EXPIRY_BATCH_ROWS + 200, received_at=NOON - KEEP_S - 60))
    assert expire(store, now=NOON) == [EXPIRY_BATCH_ROWS, EXPIRY_BATCH_ROWS, 200]
    store.close()


def test_the_file_shrinks_again(tmp_path: Path) -> None:
    """Pages freed by deletes are given back to the disk."""
    store = Store(tmp_path / "l.db")
    store.write(records(3000, received_at=NOON - KEEP_S - 60))
    store.checkpoint()
    before = store.bytes
    expire(store, now=NOON)
    store.checkpoint()
    assert store.bytes < before / 4
    store.close()


def test_a_clock_gone_far_ahead_takes_a_day_of_rows_at_most(tmp_path: Path) -> None:
    """When the clock suddenly shows ten years later, one pass deletes no more than the oldest day."""
    store = Store(tmp_path / "l.db")
    store.write([a_record(f"day{n}", received_at=NOON + n * DAY_S) for n in range(5)])
    expire(store, now=NOON + 3650 * DAY_S)
    store.close()
    assert ids(tmp_path / "l.db") == ["day1", "day2", "day3", "day4"]


def test_a_clock_gone_back_deletes_nothing(tmp_path: Path) -> None:
    """A clock that shows 1970 makes no row old."""
    store = Store(tmp_path / "l.db")
    store.write(records(3))
    assert expire(store, now=60.0) == []
    store.close()


def test_rows_written_before_the_clock_was_set_are_not_taken_for_old(tmp_path: Path) -> None:
    """A box without a battery clock boots in 1970: what it recorded then is as young as the rest."""
    store = Store(tmp_path / "l.db")
    store.write([a_record("in-1970", received_at=30.0), a_record("now", received_at=NOON)])
    assert expire(store, now=NOON) == []
    store.close()


def test_rows_with_impossible_labels_go_by_the_running_clock(tmp_path: Path) -> None:
    """A label of 1970 or 2099 keeps no row for ever: the ledger's own running time decides, over restarts."""
    path, clock = tmp_path / "l.db", ManualClock()
    for n in range(2):
        store = Store(path, clock=clock)
        store.write([a_record(f"in-1970-{n}", received_at=30.0), a_record(f"in-2099-{n}", received_at=NOON + 3e9)])
        clock.now_s += KEEP_S / 2 + 1
        store.write([a_record(f"mark-{n}")])
        store.close()
    store = Store(path, clock=clock)
    assert expire(store, now=60.0) == [2]
    store.close()
    assert ids(path) == ["mark-0", "in-1970-1", "in-2099-1", "mark-1"]


def test_the_running_ledger_expires_by_itself(tmp_path: Path) -> None:
    """The writer deletes old rows without being asked and goes on writing."""
    path = tmp_path / "ledger.db"
    store_of(path, records(1200, received_at=time.time() - KEEP_S - DAY_S / 2))
    ledger = a_ledger(path, tuning=Tuning(commit_every_s=0.01, checkpoint_every_s=0.01))
    with ledger._lock:
        ledger._moved.wait_for(lambda: ledger._error is None, 10)
    ledger.append(a_record("new", received_at=time.time()))
    assert ledger.flush(10)
    deadline_s = time.monotonic() + 20
    while count(path, "requests") > 1 and time.monotonic() < deadline_s:
        ledger.flush(1)
    assert ids(path) == ["new"]
    ledger.close(10)


def test_order_is_the_order_of_writing_whatever_the_clock_did(tmp_path: Path) -> None:
    """After a backward step the later record still comes last, and a wrong label harms nothing else."""
    path = tmp_path / "l.db"
    store_of(path, [a_record("first", received_at=NOON), a_record("second", received_at=NOON - 10_800)])
    assert [record.id for _, record in tail(path, 10)] == ["first", "second"]
    assert split(path, since_s=60, now=NOON - 10_800).requests == 2


def test_the_window_includes_rows_written_before_the_clock_was_set(tmp_path: Path) -> None:
    """split --since 24h shows what happened since boot, although it is labelled 1970."""
    path, clock = tmp_path / "l.db", ManualClock()
    store = Store(path, clock=clock)
    store.write([a_record("days-ago", received_at=10.0)])
    clock.now_s = 3 * DAY_S
    store.write([a_record("since-boot", received_at=20.0), a_record("now", received_at=NOON)])
    store.close()
    assert split(path, since_s=DAY_S, now=NOON).requests == 2
    assert split(path, since_s=None).requests == 3
