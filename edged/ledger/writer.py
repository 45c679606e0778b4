"""The ledger as the rest of edged sees it: ``append`` and go on; one thread does the writing."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from edged.core import Audit, BudgetSnapshot, DayMark, KeptMoney, Record, Reservation
from edged.errors import LedgerError
from edged.ledger.files import create_private, is_corruption
from edged.ledger.money import Notes, kept_money, opened, sums
from edged.ledger.store import DAY_S, MAX_WAL_BYTES, Connect, ReaderInTheWay, Store, Written, connect

log = logging.getLogger(__name__)

_FAILURES = (sqlite3.Error, OSError, LedgerError)
_NOT_OPEN = "not open yet"
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_RECORD_BYTES = 2_048  # what a record without its texts weighs in memory, roughly and rather too much


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the writer paces itself. ``commit_every_s`` is the most a power cut can lose."""

    commit_every_s: float = 0.5
    retry_every_s: float = 2.0
    batch_rows: int = 500
    queue_rows: int = 10_000
    queue_bytes: int = 64 * 2**20
    checkpoint_every_s: float = 60.0
    expire_every_s: float = 3_600.0
    max_wal_bytes: int = MAX_WAL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStats:
    """A frozen look at the writer: rows ``written`` since start, ``queued`` in memory, ``dropped`` for good.

    ``degraded`` while rows cannot reach the disk, with the ``error`` why; ``bytes`` on disk as of the last commit.
    While the file is being opened and checked, rows simply wait.
    """

    written: int
    queued: int
    dropped: int
    degraded: bool
    bytes: int
    error: str | None = None


class Ledger:
    """The append-only record of every request. Thread-safe; nothing but ``flush``, ``close`` and the query ever waits.

    Rows wait in memory, in order, until a commit has them; when more wait than the queue holds the oldest are dropped
    and counted. A broken, full, locked or vanished file degrades the ledger, never the caller, and heals by itself.
    """

    def __init__(self, path: Path, *, keep_days: int, store_text: bool, tuning: Tuning, connect: Connect) -> None:
        self._path = path
        self._keep_s = keep_days * DAY_S
        self._store_text = store_text
        self._tuning = tuning
        self._store = Store(path, connect=connect, max_wal_bytes=tuning.max_wal_bytes)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)  # the writer waits on it
        self._moved = threading.Condition(self._lock)  # flush waits on it
        self._queue: deque[Record | Audit] = deque()
        self._queue_bytes = 0
        self._notes = Notes()
        self._in_flight = 0
        self._appended = self._settled = self._written = self._dropped = 0
        self._flush_to = 0
        self._hurry = self._closing = False
        self._error: str | None = _NOT_OPEN
        self._bytes = 0
        self._expiry: Iterator[int] | None = None
        self._expire_due_s = self._checkpoint_due_s = time.monotonic() + tuning.checkpoint_every_s
        self._thread = threading.Thread(target=self._run, name="edged-ledger", daemon=True)

    def __repr__(self) -> str:
        stats = self.stats
        state = "closed" if self._closing else "degraded" if stats.degraded else "ok"
        return f"<Ledger {state} written={stats.written} queued={stats.queued} dropped={stats.dropped}>"

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        keep_days: int,
        store_text: bool,
        tuning: Tuning = Tuning(),
        connect: Connect = connect,
    ) -> Self:
        """Start the writer and return at once; a broken file is moved aside in the background.

        Raises: LedgerError where the path can never be a ledger: not writable, a link, another program's database.
        """
        create_private(path)
        ledger = cls(path, keep_days=keep_days, store_text=store_text, tuning=tuning, connect=connect)
        ledger._thread.start()
        return ledger

    @property
    def stats(self) -> LedgerStats:
        """Counters as of now; no disk is touched for it."""
        with self._lock:
            alive = self._thread.is_alive() or self._closing
            return LedgerStats(
                written=self._written,
                queued=len(self._queue) + self._in_flight,
                dropped=self._dropped,
                degraded=self._error not in (None, _NOT_OPEN) or not alive,
                bytes=self._bytes,
                error=self._error if alive else "the writer has stopped",
            )

    @property
    def is_failing(self) -> bool:
        """Whether what is noted now cannot reach the disk."""
        return self._error is not None or not self._thread.is_alive()

    def append(self, record: Record) -> None:
        """Take the record and return; callable from any thread and from the event loop."""
        self._take(record if self._store_text else replace(record, prompt_text=None, answer_text=None))

    def append_audit(self, audit: Audit) -> None:
        """Take an audit, behind the record of its request; as ``append``."""
        self._take(audit)

    def _take(self, kept: Record | Audit) -> None:
        with self._lock:
            self._appended += 1
            if self._closing:
                self._drop(1)
                return
            self._queue.append(kept)
            self._queue_bytes += _weight_bytes(kept)
            self._trim()
            if len(self._queue) in (1, self._tuning.batch_rows):
                self._wake.notify()

    def promise(self, reservation: Reservation, mark: DayMark, kept: Callable[[bool], None] | None = None) -> None:
        """Note a call before it is made; ``kept``, called once from any thread, hears whether that is on disk."""
        self._note(opened(reservation, mark, kept), at_once=kept is not None)

    def keep(self, budgets: tuple[BudgetSnapshot, ...], mark: DayMark, *, closed: tuple[str, ...] = ()) -> None:
        """Note what budgets stand at and which promised calls have ended; never waits."""
        self._note(sums(budgets, mark, closed=closed), at_once=False)

    def _note(self, notes: Notes, *, at_once: bool) -> None:
        with self._lock:
            is_open = not self._closing
            if is_open:
                self._appended += notes.count
                self._notes.add(notes)
                self._hurry = self._hurry or at_once
                self._wake.notify()
        if not is_open:
            notes.tell(kept=False)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything appended before the call is on disk; False after the timeout or if rows were dropped.

        Blocks: call it from a thread, not from the event loop.
        """
        with self._lock:
            target, dropped = self._appended, self._dropped
            if self._settled < target:
                self._flush_to, self._hurry = target, True
                self._wake.notify()
            done = self._moved.wait_for(lambda: self._settled >= target, timeout_s)
            return done and self._dropped == dropped

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, tidy up and stop; True where nothing was lost. Later records are counted as dropped."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._dropped == 0

    def kept_money(self, *, timeout_s: float = 30.0) -> KeptMoney:
        """The budgets' day as an earlier run left it. Blocks.

        Raises: LedgerError where it cannot be known; a budget must then assume the worst.
        """
        self._wait_open(timeout_s)
        if self._store.lost:
            raise LedgerError("what was spent cannot be known: the ledger was damaged and a new one is begun")
        return kept_money(self._path)

    def _wait_open(self, timeout_s: float) -> None:
        with self._lock:
            self._hurry = True
            self._wake.notify()
            is_open = self._moved.wait_for(lambda: self._error is None, timeout_s)
        if not is_open or not self.flush(timeout_s):
            raise LedgerError("what was spent cannot be read: the ledger is not writable")

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._settled += count
        self._moved.notify_all()

    def _trim(self) -> None:
        """Keep the newest rows that fit the memory allowed."""
        while self._queue and (
            len(self._queue) > self._tuning.queue_rows or self._queue_bytes > self._tuning.queue_bytes
        ):
            self._queue_bytes -= _weight_bytes(self._queue.popleft())
            self._drop(1)

    def _is_due(self) -> bool:
        if self._closing or self._hurry:
            return True
        if self._error is not None:
            return False
        return len(self._queue) >= self._tuning.batch_rows or self._settled < self._flush_to

    # -- the writer's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._write([], Notes())
        while not (self._closing and (self._error is not None or not (self._queue or self._notes))):
            self._write(*self._next_batch())
            self._maintain()
        self._finish()

    def _next_batch(self) -> tuple[list[Record | Audit], Notes]:
        """Wait for a row, then a little longer for its neighbours; empty when only maintenance is due."""
        tuning = self._tuning
        with self._lock:
            if self._error is not None:
                self._wake.wait_for(self._is_due, tuning.retry_every_s)
            else:
                self._wake.wait_for(lambda: self._queue or self._notes or self._is_due(), self._idle_s())
                self._wake.wait_for(self._is_due, tuning.commit_every_s if self._queue or self._notes else 0)
            self._hurry = False
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), tuning.batch_rows))]
            self._queue_bytes -= sum(map(_weight_bytes, batch))
            self._in_flight = len(batch)
            notes, self._notes = self._notes, Notes()
        return batch, notes

    def _idle_s(self) -> float:
        if self._expiry is not None:
            return 0
        return max(0.0, min(self._expire_due_s, self._checkpoint_due_s) - time.monotonic())

    def _write(self, batch: list[Record | Audit], notes: Notes) -> None:
        if not batch and not notes and self._error is None:
            return
        try:
            written = self._store.write(batch, notes)
        except _FAILURES as exc:
            self._put_back(batch, exc, notes)
            self._repair(exc)
        else:
            self._settle(len(batch) + notes.count, written)
            notes.tell(kept=True)

    def _put_back(self, batch: list[Record | Audit], exc: Exception, notes: Notes) -> None:
        error = f"{type(exc).__name__}: {exc}"
        if self._error != error:
            log.warning("ledger degraded, rows wait in memory: error=%r", error)
        with self._lock:
            self._error = error
            self._queue.extendleft(reversed(batch))
            self._queue_bytes += sum(map(_weight_bytes, batch))
            self._in_flight = 0
            self._trim()
            later, self._notes = self._notes, notes
            self._notes.add(later)
            unkept, self._notes.waiting = self._notes.waiting, []
        for told in unkept:
            told(False)

    def _settle(self, count: int, written: Written) -> None:
        size_bytes = self._store.bytes
        if self._error not in (None, _NOT_OPEN):
            log.warning("ledger recovered: dropped=%d", self._dropped)
        with self._lock:
            self._error = None
            self._in_flight = 0
            self._written += written.new
            self._dropped += written.refused
            self._settled += count
            self._bytes = size_bytes
            self._moved.notify_all()

    def _repair(self, exc: Exception) -> None:
        """Make the next try more likely to work: nothing for a lock, else a new connection or a new file."""
        if isinstance(exc, ReaderInTheWay) or getattr(exc, "sqlite_errorcode", 0) & 0xFF in _PASSING:
            return
        try:
            if isinstance(exc, sqlite3.Error) and is_corruption(exc):
                self._store.start_over("corrupt", str(exc))
            else:
                self._store.close()
        except _FAILURES as again:
            log.warning("ledger cannot be repaired yet: error=%r", str(again))

    def _maintain(self) -> None:
        if self._error is not None:
            return
        try:
            self._checkpoint_if_due()
            self._expire_if_due()
        except _FAILURES as exc:
            log.warning("ledger maintenance put off: error=%r", str(exc))
            self._expiry = None
            self._repair(exc)

    def _checkpoint_if_due(self) -> None:
        if (now_s := time.monotonic()) < self._checkpoint_due_s:
            return
        self._checkpoint_due_s = now_s + self._tuning.checkpoint_every_s
        self._store.checkpoint()

    def _expire_if_due(self) -> None:
        """One small delete per round, so that rows which arrive meanwhile are not kept waiting."""
        if self._expiry is None and (now_s := time.monotonic()) >= self._expire_due_s:
            self._expire_due_s = now_s + self._tuning.expire_every_s
            self._expiry = self._store.expiry(keep_s=self._keep_s, now=time.time())
        if self._expiry is not None and next(self._expiry, None) is None:
            self._expiry = None

    def _finish(self) -> None:
        with self._lock:
            unwritten = len(self._queue)
            self._drop(unwritten)
            self._queue.clear()
            unkept, self._notes = self._notes, Notes()
        unkept.tell(kept=False)
        if unwritten:
            log.error("ledger closed with rows unwritten: dropped=%d error=%r", unwritten, self._error)
        try:
            self._store.checkpoint()
        except _FAILURES as exc:
            log.info("ledger closed without a checkpoint: error=%r", str(exc))
        self._store.close()


def _weight_bytes(record: Record | Audit) -> int:
    if isinstance(record, Audit):
        return _RECORD_BYTES
    return _RECORD_BYTES + len(record.prompt_text or "") + len(record.answer_text or "")
