"""What the ledger keeps of money beside the records: the budgets' day, what is spent of it, and calls under way.

A call's reservation is a row from before the call until its end is noted, so a start after a power cut finds what was
promised and never settled. Sums are written as they stand, not added to: a note that is written twice does no harm.
"""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edged.core import BudgetSnapshot, DayMark, KeptMoney, Reservation, Scope
from edged.ledger.queries import IN_WINDOW, NoLedger, reading, window

DAYS_KEPT = 31
_DAY_S = 86_400


@dataclass(slots=True)
class Notes:
    """What is to be written next; later notes replace earlier ones, so that it stays small while nothing can be."""

    opened: dict[str, Reservation] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    spent: dict[tuple[int, Scope, str], BudgetSnapshot] = field(default_factory=dict)
    mark: DayMark | None = None
    waiting: list[Callable[[bool], None]] = field(default_factory=list)
    count: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, later: "Notes") -> None:
        """Take over what was noted after this."""
        self.opened |= later.opened
        for one in later.closed:
            if self.opened.pop(one, None) is None:
                self.closed.add(one)
        self.spent |= later.spent
        self.mark = later.mark or self.mark
        self.waiting += later.waiting
        self.count += later.count

    def standing(self) -> "Notes":
        """A copy of the sums and of the calls under way."""
        return Notes(opened=dict(self.opened), spent=dict(self.spent), mark=self.mark)

    def settle(self) -> None:
        """Keep of what has been written only what still stands: today's sums and calls under way."""
        day = None if self.mark is None else self.mark.number
        self.spent = {key: budget for key, budget in self.spent.items() if key[0] == day}
        self.closed, self.waiting, self.count = set(), [], 0

    def tell(self, *, kept: bool) -> None:
        """Answer whoever waits to know whether this is on disk."""
        waiting, self.waiting = self.waiting, []
        for told in waiting:
            told(kept)


def opened(reservation: Reservation, mark: DayMark, kept: Callable[[bool], None] | None) -> Notes:
    """The note of a call about to be made."""
    return Notes(opened={reservation.id: reservation}, mark=mark, waiting=[kept] if kept else [], count=1)


def sums(budgets: tuple[BudgetSnapshot, ...], mark: DayMark, *, closed: tuple[str, ...] = ()) -> Notes:
    """The note of what these budgets stand at, and of calls that have ended."""
    spent = {(mark.number, budget.scope, budget.name): budget for budget in budgets}
    return Notes(closed=set(closed), spent=spent, mark=mark, count=1)


def write(connection: sqlite3.Connection, notes: Notes, *, are_all: bool = False) -> None:
    """Write the notes inside the transaction that is open; ``are_all``: no call is under way beside those noted."""
    if are_all:
        connection.execute("DELETE FROM reservations")
    connection.executemany("DELETE FROM reservations WHERE id = ?", [(one,) for one in notes.closed])
    connection.executemany(
        "INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(r.id, r.request_id, r.upstream, r.model, r.route, r.tenant, r.amount_uusd) for r in notes.opened.values()],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO spending VALUES (?, ?, ?, ?, ?, ?)",
        [
            (day, scope.value, name, budget.limit_uusd, budget.spent_uusd, budget.estimated_uusd)
            for (day, scope, name), budget in notes.spent.items()
        ],
    )
    if (mark := notes.mark) is not None:
        connection.execute(
            "INSERT OR REPLACE INTO budget_day VALUES (1, ?, ?, ?, ?)",
            (mark.number, mark.date, mark.open_s, mark.wall_s),
        )
        connection.execute("DELETE FROM spending WHERE day <= ?", (mark.number - DAYS_KEPT,))


def kept_money(path: Path) -> KeptMoney:
    """The current day as it was last noted; where none was, what today's records cost. Raises: LedgerError."""
    try:
        with reading(path) as connection:
            return _kept(connection)
    except NoLedger:
        return KeptMoney()


def _kept(connection: sqlite3.Connection) -> KeptMoney:
    row = connection.execute("SELECT day, date, open_s, wall_s FROM budget_day").fetchone()
    if row is None:
        return _from_records(connection)
    mark = DayMark(number=row["day"], date=row["date"], open_s=row["open_s"], wall_s=row["wall_s"])
    spent = connection.execute("SELECT * FROM spending WHERE day = ? ORDER BY scope, name", (mark.number,)).fetchall()
    rows = connection.execute("SELECT * FROM reservations ORDER BY id").fetchall()
    promised = tuple(Reservation(**dict(row)) for row in rows)
    return KeptMoney(mark, tuple(_snapshot(row, promised) for row in spent), promised)


def _snapshot(row: sqlite3.Row, promised: tuple[Reservation, ...]) -> BudgetSnapshot:
    scope, name = Scope(row["scope"]), row["name"]
    return BudgetSnapshot(
        scope=scope,
        name=name,
        limit_uusd=row["limit_uusd"],
        spent_uusd=row["spent_uusd"],
        estimated_uusd=row["estimated_uusd"],
        reserved_uusd=sum(one.amount_uusd for one in promised if _concerns(one, scope, name)),
    )


def _concerns(reservation: Reservation, scope: Scope, name: str) -> bool:
    match scope:
        case Scope.ALL:
            return True
        case Scope.ROUTE:
            return reservation.route == name
        case Scope.KEY:
            return reservation.tenant == name


def _from_records(connection: sqlite3.Connection) -> KeptMoney:
    """A file from before budgets were kept: the cost of everything received since midnight UTC."""
    now_s = time.time()
    open_s = now_s % _DAY_S
    routes = connection.execute(
        f"SELECT coalesce(route, '') AS route, sum(cost_uusd) AS cost FROM requests WHERE {IN_WINDOW} GROUP BY 1",  # noqa: S608 - constants
        window(open_s, now_s),
    ).fetchall()
    spent = [_spent(Scope.ROUTE, row["route"], row["cost"]) for row in routes if row["route"]]
    spent.append(_spent(Scope.ALL, "", sum(row["cost"] for row in routes)))
    return KeptMoney(DayMark(number=1, date=int(now_s // _DAY_S), open_s=open_s, wall_s=now_s), tuple(spent))


def _spent(scope: Scope, name: str, spent_uusd: int) -> BudgetSnapshot:
    return BudgetSnapshot(scope=scope, name=name, limit_uusd=None, spent_uusd=spent_uusd)
