"""What the ledger keeps of money: promised calls, standing budgets, and the day, over kills, full disks and damage."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ledger_builders import FAST, a_cost, a_ledger, a_record, records, store_of

from edged.core import BudgetSnapshot, DayMark, Reservation, Scope
from edged.errors import LedgerError
from edged.ledger import Tuning, kept_money, schema, store

MARK = DayMark(number=7, date=20_000, open_s=60.0, wall_s=20_000 * 86_400.0)


def a_promise(number=1, amount_uusd=500, **fields):
    usual = {"request_id": "r", "upstream": "cloud", "model": "m", "route": "auto", "tenant": "kitchen"}
    return Reservation(id=f"p{number}", amount_uusd=amount_uusd, **(usual | fields))


def a_budget(spent_uusd, scope=Scope.ALL, name="", limit_uusd=1_000):
    return BudgetSnapshot(scope=scope, name=name, limit_uusd=limit_uusd, spent_uusd=spent_uusd, estimated_uusd=3)


def connect_without_cache(path):
    connection = store.connect(path)
    connection.execute("PRAGMA cache_size = 0")  # or the writer would not look at the damaged pages for a while
    return connection


def scramble(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    path.with_name(path.name + "-wal").write_bytes(b"")


class Answer:
    """Waits for what the writer says of a promise."""

    def __init__(self):
        self.heard, self.kept = threading.Event(), None

    def __call__(self, kept):
        self.kept = kept
        self.heard.set()

    def result(self):
        assert self.heard.wait(20)
        return self.kept


def test_a_promise_is_on_disk_when_the_writer_says_so(tmp_path: Path) -> None:
    """Readable from another connection at that moment, together with the day, long before the next regular commit."""
    ledger = a_ledger(tmp_path / "l.db", tuning=Tuning(commit_every_s=60.0))
    kept = Answer()
    ledger.promise(a_promise(), MARK, kept)
    assert kept.result() is True
    found = kept_money(tmp_path / "l.db")
    assert (found.mark, found.open) == (MARK, (a_promise(),))
    ledger.close(10)


def test_an_ended_call_leaves_its_place_to_the_sum(tmp_path: Path) -> None:
    """Sums are what they are said to be; the calls under way are counted beside them as reserved."""
    ledger = a_ledger(tmp_path / "l.db")
    for number in (1, 2):
        ledger.promise(a_promise(number), MARK)
    auto = a_budget(120, Scope.ROUTE, "auto")
    other = a_budget(0, Scope.ROUTE, "other")
    ledger.keep((a_budget(120), auto, other), MARK, closed=("p1",))
    assert ledger.flush(20)
    found = kept_money(tmp_path / "l.db")
    assert [one.id for one in found.open] == ["p2"]
    assert [(b.name, b.spent_uusd, b.estimated_uusd, b.reserved_uusd, b.limit_uusd) for b in found.spent] == [
        ("", 120, 3, 500, 1_000),
        ("auto", 120, 3, 500, 1_000),
        ("other", 0, 3, 0, 1_000),
    ]
    ledger.close(10)


def test_only_the_newest_day_is_todays(tmp_path: Path) -> None:
    """Earlier days stay for a month and are not today's spend."""
    ledger = a_ledger(tmp_path / "l.db")
    for number in range(7, 47):
        mark = DayMark(number=number, date=20_000 + number, open_s=0.0, wall_s=0.0)
        ledger.keep((a_budget(number),), mark)
        assert ledger.flush(20)
    assert [b.spent_uusd for b in kept_money(tmp_path / "l.db").spent] == [46]
    ledger.close(10)
    connection = sqlite3.connect(tmp_path / "l.db")
    assert connection.execute("SELECT min(day), count(*) FROM spending").fetchone() == (16, 31)
    connection.close()


def test_kill_9_forgets_no_promise(tmp_path: Path) -> None:
    """Every promise that was acknowledged, and not ended, is there after the process was killed in the middle."""
    path = tmp_path / "l.db"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent.parent)])}
    command = [sys.executable, str(here / "money_child.py"), str(path)]
    acknowledged = set()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            acknowledged.add(line.strip())
            if len(acknowledged) == 25:
                child.send_signal(signal.SIGKILL)
                break
        acknowledged |= {line.strip() for line in child.stdout if line.endswith("\n")}
    assert acknowledged <= {one.id for one in kept_money(path).open}


def test_a_full_disk_refuses_the_promise_and_keeps_the_sums(tmp_path: Path) -> None:
    """Who waits hears no at once; when there is room again the newest sums are written."""
    room = threading.Event()

    def full(path):
        connection = store.connect(path)
        if not room.is_set():
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    ledger = a_ledger(tmp_path / "l.db", connect=full)
    connection = a_ledger(tmp_path / "other.db")  # time for the first one to find its disk full
    assert connection.flush(20)
    kept = Answer()
    ledger.promise(a_promise(1), MARK, kept)
    assert kept.result() is False
    assert ledger.is_failing
    ledger.keep((a_budget(40),), MARK, closed=("p1",))
    ledger.keep((a_budget(90),), MARK)
    room.set()
    found = ledger.kept_money()
    assert (found.open, [b.spent_uusd for b in found.spent]) == ((), [90])
    assert not ledger.is_failing
    ledger.close(10)
    connection.close(10)


@pytest.mark.parametrize("fate", ["deleted", "broken"])
def test_a_file_that_goes_under_the_running_daemon_takes_no_money_with_it(tmp_path: Path, fate: str) -> None:
    """With the next row all sums and every call under way are in the new file, also those that nobody touched since."""
    path = tmp_path / "l.db"
    store_of(path, records(500))
    ledger = a_ledger(path, connect=connect_without_cache)
    for number in (1, 2, 3):
        ledger.promise(a_promise(number), MARK)
    ledger.keep((a_budget(120), a_budget(80, Scope.ROUTE, "auto")), MARK, closed=("p1",))
    assert ledger.flush(20)
    if fate == "deleted":
        path.unlink()
    else:
        scramble(path)
    ledger.append(a_record("later"))
    ledger.keep((a_budget(150),), MARK, closed=("p2",))
    assert ledger.flush(20)
    found = kept_money(path)
    assert [one.id for one in found.open] == ["p3"]
    assert [(b.name, b.spent_uusd) for b in found.spent] == [("", 150), ("auto", 80)]
    ledger.close(10)


def test_after_damage_nobody_knows_what_was_spent(tmp_path: Path) -> None:
    """A new file that knows nothing is no proof that nothing was spent."""
    path = tmp_path / "l.db"
    store_of(path, [a_record()])
    path.write_bytes(b"not a database" * 1000)
    ledger = a_ledger(path)
    with pytest.raises(LedgerError, match="damaged"):
        ledger.kept_money()
    ledger.close(10)
    again = a_ledger(path)
    assert again.kept_money().spent[0].spent_uusd == 0
    again.close(10)


def test_a_ledger_from_before_budgets_were_kept_counts_todays_records(tmp_path: Path) -> None:
    """The update to this version opens no budget that is spent already."""
    path = tmp_path / "l.db"
    now = time.time()
    rows = [a_record("a", received_at=now, attempts=(a_cost(700),))]
    rows += [a_record("b", received_at=now, route="other", attempts=(a_cost(50),))]
    rows += [a_record("c", received_at=now - 2 * 86_400, attempts=(a_cost(9_000),))]
    store_of(path, rows)
    found = kept_money(path)
    assert {(b.scope, b.name): b.spent_uusd for b in found.spent} == {
        (Scope.ROUTE, "auto"): 700,
        (Scope.ROUTE, "other"): 50,
        (Scope.ALL, ""): 750,
    }
    assert found.mark is not None
    assert found.mark.date == int(now // 86_400)


def test_a_closed_ledger_keeps_no_promise(tmp_path: Path) -> None:
    """Who asks too late hears no."""
    ledger = a_ledger(tmp_path / "l.db", tuning=FAST)
    ledger.close(10)
    kept = Answer()
    ledger.promise(a_promise(), MARK, kept)
    assert kept.result() is False


def test_a_ledger_of_schema_two_learns_to_keep_money(tmp_path: Path) -> None:
    """An existing ledger gets its tables; its records stay."""
    path = tmp_path / "l.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for version in (0, 1):
        for statement in schema.MIGRATIONS[version]:
            connection.execute(statement)
    connection.execute("PRAGMA user_version = 2")
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.close()
    ledger = a_ledger(path)
    ledger.promise(a_promise(), MARK)
    ledger.append(a_record())
    assert ledger.flush(20)
    assert len(kept_money(path).open) == 1
    ledger.close(10)
