"""What callers may rely on: append never waits, flush means on disk, one id is one row."""

import asyncio
import stat
import threading
from pathlib import Path

import pytest
from ledger_builders import FAST, a_ledger, a_record, an_attempt, ids, records

from edged.errors import LedgerError
from edged.ledger import Ledger, Tuning, find, store, tail
from edged.ledger.store import BUSY_TIMEOUT_S

NEVER = Tuning(commit_every_s=3600)


def test_a_flushed_record_is_on_disk(tmp_path: Path) -> None:
    """flush returns True only when everything appended before it can be read from the file."""
    ledger = a_ledger(tmp_path / "ledger.db")
    for record in records(3):
        ledger.append(record)
    assert ledger.flush(10)
    assert ids(tmp_path / "ledger.db") == ["req-00000", "req-00001", "req-00002"]
    assert ledger.close(10)


def test_a_commit_needs_no_flush(tmp_path: Path) -> None:
    """A record reaches the disk by itself, without anybody asking."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.append(a_record())
    with ledger._lock:
        assert ledger._moved.wait_for(lambda: ledger._settled == 1, 10)
    assert ids(tmp_path / "ledger.db") == ["req-1"]
    ledger.close(10)


def test_the_default_pace_loses_at_most_a_second() -> None:
    """By default a commit is at most one second late, the wait for a busy file included, and each commit is synced."""
    assert Tuning().commit_every_s <= 1
    assert BUSY_TIMEOUT_S <= 1


def test_every_commit_is_synced(tmp_path: Path) -> None:
    """synchronous is FULL (2): in WAL mode less would leave commits unsynced until a checkpoint."""
    ledger = a_ledger(tmp_path / "ledger.db")
    seen: list[int] = []
    original = ledger._store.write

    def write(*batch: object) -> store.Written:
        new = original(*batch)
        seen.append(ledger._store._connection.execute("PRAGMA synchronous").fetchone()[0])
        return new

    ledger._store.write = write
    ledger.append(a_record())
    assert ledger.flush(10)
    ledger.close(10)
    assert set(seen) == {2}


def test_twenty_thousand_appends_only_queue(tmp_path: Path) -> None:
    """append puts a row in a bounded queue and returns: with a writer that never commits, nothing waits for it."""
    ledger = Ledger.open(
        tmp_path / "ledger.db", keep_days=30, store_text=False, tuning=Tuning(commit_every_s=3600, batch_rows=10**9)
    )
    for record in records(20_000):
        ledger.append(record)
    stats = ledger.stats
    assert (stats.written, stats.queued, stats.dropped) == (0, 10_000, 10_000)
    assert ledger.close(60) is False  # rows were dropped, and close says so
    kept = ids(tmp_path / "ledger.db")
    assert (kept[0], kept[-1], len(kept)) == ("req-10000", "req-19999", 10_000)


def test_the_queue_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    """Long stored texts cannot fill the memory: the oldest rows give way."""
    tuning = Tuning(commit_every_s=3600, queue_bytes=100_000)
    ledger = Ledger.open(tmp_path / "ledger.db", keep_days=30, store_text=True, tuning=tuning)
    for record in records(20, answer_text="x" * 10_000):
        ledger.append(record)
    assert ledger.stats.queued == 8
    ledger.close(10)
    assert ids(tmp_path / "ledger.db")[-1] == "req-00019"


def test_append_works_from_the_event_loop_and_from_threads(tmp_path: Path) -> None:
    """Appends from a running loop and from several threads at once are all kept."""
    ledger = a_ledger(tmp_path / "ledger.db")
    threads = [
        threading.Thread(target=lambda n=n: [ledger.append(r) for r in records(50, prefix=f"t{n}")]) for n in range(4)
    ]
    for thread in threads:
        thread.start()

    async def main() -> bool:
        for record in records(50, prefix="loop"):
            ledger.append(record)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        return await asyncio.to_thread(ledger.flush, 10)

    assert asyncio.run(main())
    assert len(set(ids(tmp_path / "ledger.db"))) == 250
    ledger.close(10)


def test_the_same_id_twice_is_one_row(tmp_path: Path) -> None:
    """The first record of an id stays, its attempts too, in the same batch or after a restart."""
    path = tmp_path / "ledger.db"
    for _ in range(2):
        ledger = a_ledger(path)
        ledger.append(a_record("one", model="first"))
        ledger.append(a_record("one", model="second"))
        assert ledger.flush(10)
        ledger.close(10)
    ((_, record),) = tail(path, 10)
    assert (record.model, len(record.attempts), len(record.decisions)) == ("first", 1, 1)


def test_a_duplicate_is_not_counted_as_written(tmp_path: Path) -> None:
    """``written`` counts rows, not appends."""
    ledger = a_ledger(tmp_path / "ledger.db")
    for _ in range(3):
        ledger.append(a_record("one"))
    assert ledger.flush(10)
    assert ledger.stats.written == 1
    ledger.close(10)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_the_files_are_private(tmp_path: Path, suffix: str) -> None:
    """The ledger and its side files are readable by their owner alone."""
    ledger = a_ledger(tmp_path / "new" / "ledger.db")
    ledger.append(a_record())
    ledger.flush(10)
    assert stat.S_IMODE((tmp_path / "new" / f"ledger.db{suffix}").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    ledger.close(10)


def test_a_file_left_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    """A looser mode, from a copy or a restore, is tightened at start."""
    path = tmp_path / "ledger.db"
    path.touch(mode=0o644)
    a_ledger(path).close(10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_text_is_not_stored_unless_asked(tmp_path: Path) -> None:
    """Without store_text neither prompt nor answer reaches memory or disk, whatever the caller passes."""
    path = tmp_path / "ledger.db"
    ledger = a_ledger(path)
    ledger.append(a_record(prompt_text="canary-prompt", answer_text="canary-answer"))
    assert ledger.flush(10)
    on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"req-1" in on_disk
    assert b"canary" not in on_disk
    ledger.close(10)


def test_text_is_stored_when_asked(tmp_path: Path) -> None:
    """With store_text both texts come back as they were."""
    path = tmp_path / "ledger.db"
    ledger = a_ledger(path, store_text=True)
    ledger.append(a_record(prompt_text="why?", answer_text="because 🧑‍🚀"))
    assert ledger.close(10)
    record = find(path, "req-1")
    assert (record.prompt_text, record.answer_text) == ("why?", "because 🧑‍🚀")


def test_a_misshapen_record_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug that puts None where a word belongs loses that one record, visibly, and never the writer."""
    ledger = a_ledger(tmp_path / "ledger.db")
    for record in (a_record("a"), a_record("bad", model=None), a_record("b", attempts=(None,)), a_record("c")):
        ledger.append(record)
    assert not ledger.flush(10)
    assert ids(tmp_path / "ledger.db") == ["a", "c"]
    assert (ledger.stats.written, ledger.stats.dropped, ledger.stats.degraded) == (2, 2, False)
    assert "misshapen" in caplog.text
    ledger.close(10)


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    """Rows still waiting when the daemon stops are written first, and no write-ahead log is left behind."""
    ledger = a_ledger(tmp_path / "ledger.db", tuning=NEVER)
    for record in records(10):
        ledger.append(record)
    assert ledger.close(10)
    assert len(ids(tmp_path / "ledger.db")) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]


def test_a_record_after_close_is_counted_as_dropped(tmp_path: Path) -> None:
    """A late record neither raises nor vanishes without a trace; closing twice is harmless."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.close(10)
    ledger.append(a_record())
    ledger.close(10)
    assert ledger.stats.dropped == 1


def test_the_repr_shows_live_state(tmp_path: Path) -> None:
    """A failing test or a debugger shows the state and the counts at a glance."""
    ledger = a_ledger(tmp_path / "ledger.db", tuning=FAST)
    ledger.append(a_record())
    ledger.flush(10)
    assert repr(ledger) == "<Ledger ok written=1 queued=0 dropped=0>"
    ledger.close(10)
    assert repr(ledger) == "<Ledger closed written=1 queued=0 dropped=0>"


def test_stats_know_the_size_on_disk(tmp_path: Path) -> None:
    """``bytes`` is the file and its write-ahead log after the last commit, and reading it touches no disk."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.append(a_record())
    ledger.flush(10)
    files = [tmp_path / "ledger.db", tmp_path / "ledger.db-wal"]
    assert ledger.stats.bytes == sum(file.stat().st_size for file in files)
    assert not ledger.stats.degraded
    ledger.close(10)


def test_spend_written_under_an_unset_clock_still_counts(tmp_path: Path) -> None:
    """A box that booted in 1970 and then learnt the time cannot spend its budget twice."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.append(a_record("early", received_at=12.0, attempts=(an_attempt(cost_uusd=70),)))
    assert {one.spent_uusd for one in ledger.kept_money().spent} == {70}
    ledger.close(10)


def test_spend_that_cannot_be_known_is_an_error(tmp_path: Path) -> None:
    """A budget must fail closed, so an unreadable ledger is never reported as nothing spent."""
    ledger = a_ledger(tmp_path / "ledger.db")
    ledger.close(10)
    ledger._error = "OperationalError: disk full"
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.kept_money(timeout_s=0.01)
