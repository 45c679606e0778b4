"""Power cuts, broken files, full disks, locks and endless readers: serving goes on and the ledger heals by itself."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ledger_builders import a_ledger, a_record, ids, records, store_of

from edged.errors import LedgerError
from edged.ledger import Ledger, Tuning, split, store
from edged.ledger.files import set_aside
from edged.ledger.schema import VERSION

ROUNDS = 15


def aside(path: Path) -> list[Path]:
    return sorted(name for name in path.parent.iterdir() if name.name.startswith(f"{path.name}.corrupt-"))


def wait_degraded(ledger: Ledger) -> str:
    """Wait until a write has failed and return the error shown."""
    failed = threading.Event()
    put_back = ledger._put_back

    def noticed(batch: list, exc: Exception, notes: object) -> None:
        put_back(batch, exc, notes)
        failed.set()

    ledger._put_back = noticed
    assert ledger.stats.degraded or failed.wait(20)
    return ledger.stats.error or ""


# -- kill -9 ---------------------------------------------------------------------------------------------------------


def test_kill_9_never_loses_an_acknowledged_row(tmp_path: Path) -> None:
    """After each of many kills in mid-write the file is sound and holds every row that a flush acknowledged."""
    path = tmp_path / "ledger.db"
    seeded = random.Random(5)
    acknowledged: set[str] = set()
    for number in range(ROUNDS):
        name = f"round{number}"
        last = kill_while_writing(path, name, after_flushes=seeded.randint(1, 12))
        acknowledged |= {f"{name}-{n:06}" for n in range(last + 1)}
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.close()
    assert acknowledged <= set(ids(path))
    assert aside(path) == []


def kill_while_writing(path: Path, name: str, *, after_flushes: int) -> int:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent.parent)])}
    command = [sys.executable, str(here / "ledger_child.py"), str(path), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        last = [int(child.stdout.readline()) for _ in range(after_flushes)][-1]
        child.kill()
        whole_lines, _, _ = child.stdout.read().rpartition("\n")
    return max([last, *map(int, whole_lines.split())])


# -- broken files ----------------------------------------------------------------------------------------------------


def zero_page_2(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def scramble(path: Path) -> None:
    path.write_bytes(b"this is no database " * 1000)


@pytest.mark.parametrize("damage", [zero_page_2, truncate, scramble])
def test_a_broken_file_is_moved_aside_and_serving_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    """A malformed ledger is kept under another name, a new one is begun, a warning tells of it, no row is refused."""
    path = tmp_path / "ledger.db"
    store_of(path, records(200))
    damage(path)
    broken = path.read_bytes()
    ledger = a_ledger(path)
    ledger.append(a_record("after"))
    assert ledger.flush(10)
    assert ids(path) == ["after"]
    assert [file.read_bytes() for file in aside(path)] == [broken]
    assert "moved aside" in caplog.text
    assert not ledger.stats.degraded
    ledger.close(10)


def test_side_files_go_with_the_broken_file(tmp_path: Path) -> None:
    """The write-ahead log stays with its own file: replayed into the new one it would break that too."""
    path = tmp_path / "ledger.db"
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"ledger.db{suffix}").write_text(f"old{suffix}")
    kept = set_aside(path, "corrupt")
    assert {name.name: name.read_text() for name in tmp_path.iterdir()} == {
        kept.name: "old",
        f"{kept.name}-wal": "old-wal",
        f"{kept.name}-shm": "old-shm",
    }


def connect_without_cache(path: Path) -> sqlite3.Connection:
    connection = store.connect(path)
    connection.execute("PRAGMA cache_size = 0")  # or the writer would not look at the damaged pages for a while
    return connection


def test_damage_while_running_is_survived(tmp_path: Path) -> None:
    """A file that breaks under the running writer is moved aside too, and the rows at hand go into the new one."""
    path = tmp_path / "ledger.db"
    store_of(path, records(2000))
    ledger = a_ledger(path, connect=connect_without_cache)
    ledger.kept_money()  # open and checked
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    for record in records(500, prefix="later"):
        ledger.append(record)
    assert ledger.flush(20)
    assert set(ids(path)) == {record.id for record in records(500, prefix="later")}
    assert len(aside(path)) >= 1
    ledger.close(10)


def test_only_a_few_broken_files_are_kept(tmp_path: Path) -> None:
    """A dying card cannot fill itself with copies of broken ledgers, even within one second of the clock."""
    path = tmp_path / "ledger.db"
    for _ in range(6):
        scramble(path)
        a_ledger(path).close(10)
    assert len(aside(path)) == 3


def test_a_newer_ledger_is_kept_and_not_touched(tmp_path: Path) -> None:
    """After a downgrade the newer file is set aside whole instead of being written with the wrong columns."""
    path = tmp_path / "ledger.db"
    store_of(path, records(1))
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    ledger = a_ledger(path)
    ledger.append(a_record("after"))
    assert ledger.flush(10)
    ledger.close(10)
    assert ids(path) == ["after"]
    (kept,) = [name for name in tmp_path.iterdir() if f"schema{VERSION + 1}-" in name.name]
    assert ids(kept) == ["req-00000"]


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    """An operator who removes the file loses the old rows, not the new ones."""
    path = tmp_path / "ledger.db"
    ledger = a_ledger(path)
    ledger.append(a_record("before"))
    assert ledger.flush(10)
    for name in tmp_path.iterdir():
        name.unlink()
    ledger.append(a_record("after"))
    assert ledger.flush(10)
    assert ids(path) == ["after"]
    ledger.close(10)


# -- paths that can never be a ledger --------------------------------------------------------------------------------


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """A mistyped path must not add edged's tables to somebody else's database."""
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 1")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's"):
        a_ledger(path)
    assert path.read_bytes() == before


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """The ledger is never written through a link somebody else may have placed."""
    (tmp_path / "ledger.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="symbolic link"):
        a_ledger(tmp_path / "ledger.db")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", ["folder", "file/ledger.db"])
def test_an_impossible_path_is_named(tmp_path: Path, path: str) -> None:
    """The error names the config key, the path and the system's reason."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=rf"\[ledger\] path: {tmp_path / path} cannot be opened for writing: \w+"):
        a_ledger(tmp_path / path)


# -- disk full -------------------------------------------------------------------------------------------------------


class Disk:
    """A disk of so many pages: SQLite answers SQLITE_FULL beyond them."""

    def __init__(self, pages: int) -> None:
        self.pages = pages

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = store.connect(path)
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection


def test_a_full_disk_degrades_the_ledger_and_space_heals_it(tmp_path: Path) -> None:
    """Rows wait in memory while the disk is full, it shows, and every one of them is written when space returns."""
    disk = Disk(pages=20)
    ledger = a_ledger(tmp_path / "ledger.db", connect=disk.connect)
    for record in records(1000):
        ledger.append(record)
    assert "full" in wait_degraded(ledger)
    assert ledger.stats.degraded
    assert not ledger.flush(0.1)
    disk.pages = 100_000
    assert ledger.flush(20)
    stats = ledger.stats
    assert (stats.written, stats.queued, stats.dropped, stats.degraded) == (1000, 0, 0, False)
    assert ids(tmp_path / "ledger.db") == [record.id for record in records(1000)]
    ledger.close(10)


def test_a_disk_full_for_long_drops_the_oldest_rows_and_counts_them(tmp_path: Path) -> None:
    """Memory stays bounded: beyond the ring's size the oldest rows are dropped, and the number is visible."""
    disk = Disk(pages=10)
    tuning = Tuning(commit_every_s=0.02, retry_every_s=0.02, queue_rows=100)
    ledger = a_ledger(tmp_path / "ledger.db", connect=disk.connect, tuning=tuning)
    for record in records(100, prefix="first"):
        ledger.append(record)
    wait_degraded(ledger)
    for record in records(100, prefix="later"):
        ledger.append(record)
    assert not ledger.flush(0.1)
    disk.pages = 100_000
    assert ledger.flush(20)
    stats = ledger.stats
    assert stats.written + stats.dropped == 200
    assert {record.id for record in records(100, prefix="later")} <= set(ids(tmp_path / "ledger.db"))
    ledger.close(10)


def test_a_disk_full_at_start_does_not_stop_the_start(tmp_path: Path) -> None:
    """Not even the tables fit: open still returns, rows wait, and the ledger comes to life when there is space."""
    disk = Disk(pages=1)
    ledger = a_ledger(tmp_path / "ledger.db", connect=disk.connect)
    ledger.append(a_record())
    wait_degraded(ledger)
    disk.pages = 100_000
    assert ledger.flush(20)
    assert ids(tmp_path / "ledger.db") == ["req-1"]
    ledger.close(10)


def test_close_on_a_full_disk_ends_and_tells_what_was_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Shutdown is not held up by a disk that stays full; the rows it costs are counted and logged."""
    ledger = a_ledger(tmp_path / "ledger.db", connect=Disk(pages=1).connect)
    ledger.append(a_record())
    wait_degraded(ledger)
    assert ledger.close(10) is False
    assert (ledger.stats.dropped, ledger.stats.queued) == (1, 0)
    assert "dropped=1" in caplog.text


# -- other processes -------------------------------------------------------------------------------------------------


@contextmanager
def another_process_writing(path: Path) -> Iterator[None]:
    """A second process inside a write transaction, for as long as the block runs."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "locked\n"
        yield
        child.stdin.close()


def test_another_process_that_holds_the_lock_never_blocks_append(tmp_path: Path) -> None:
    """While somebody else sits in a write transaction, appends queue up and return; nothing is lost once it ends."""
    path = tmp_path / "ledger.db"
    ledger = a_ledger(path)
    ledger.append(a_record("before"))
    assert ledger.flush(10)
    with another_process_writing(path):
        for record in records(500):
            ledger.append(record)
        assert "locked" in wait_degraded(ledger)  # the busy timeout has passed, the lock is still held
        for record in records(500, prefix="more"):
            ledger.append(record)
        assert ledger.stats.written == 1
        assert ledger.stats.queued == 1000
    assert ledger.flush(20)
    assert len(ids(path)) == 1001
    assert not ledger.stats.degraded
    ledger.close(10)


def test_a_lock_at_start_is_waited_out(tmp_path: Path) -> None:
    """A ledger locked by another process while the daemon starts opens as soon as the lock goes."""
    path = tmp_path / "ledger.db"
    store_of(path, [])
    with another_process_writing(path):
        ledger = a_ledger(path)
        ledger.append(a_record())
        wait_degraded(ledger)
    assert ledger.flush(20)
    ledger.close(10)


def test_the_log_stays_bounded_under_an_endless_reader(tmp_path: Path) -> None:
    """A reader that never ends caps the write-ahead log: rows then wait in memory and are written when it goes."""
    path = tmp_path / "ledger.db"
    limit_bytes, wal = 256 * 1024, tmp_path / "ledger.db-wal"
    tuning = Tuning(commit_every_s=0.01, retry_every_s=0.02, batch_rows=100, max_wal_bytes=limit_bytes)
    store_of(path, records(1))
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM requests").fetchone()
    ledger = a_ledger(path, tuning=tuning)
    for record in records(3000, prefix="more"):
        ledger.append(record)
    assert "reader" in wait_degraded(ledger)
    assert wal.stat().st_size <= 2 * limit_bytes
    reader.execute("COMMIT")
    assert ledger.flush(20)
    assert len(ids(path)) == 3001
    reader.close()
    ledger.close(10)
    assert not wal.exists()


def test_the_log_is_emptied_now_and_then(tmp_path: Path) -> None:
    """A periodic checkpoint truncates the write-ahead log to nothing when no reader is in the way."""
    path = tmp_path / "ledger.db"
    ledger = a_ledger(path, tuning=Tuning(commit_every_s=0.01, checkpoint_every_s=0.01))
    emptied = threading.Event()
    original = ledger._store.checkpoint

    def checkpoint() -> bool:
        done = original()
        if done and path.stat().st_size > 4096 and (tmp_path / "ledger.db-wal").stat().st_size == 0:
            emptied.set()
        return done

    ledger._store.checkpoint = checkpoint
    for record in records(100):
        ledger.append(record)
    assert ledger.flush(10)
    assert emptied.wait(10)
    ledger.close(10)


def test_a_query_leaves_no_reader_behind(tmp_path: Path) -> None:
    """After split has answered, a checkpoint can empty the log: its connection is closed."""
    path = tmp_path / "ledger.db"
    writer = store.Store(path)
    writer.write(records(10))
    assert split(path).requests == 10
    assert writer.checkpoint()
    assert writer.wal_bytes == 0
    writer.close()
