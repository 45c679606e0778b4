"""The step being computed: for whom, since when, and whether it was told to stop."""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Abortable(Protocol):
    """What a runner offers to stop its running decode."""

    def set_abort(self, *, on: bool) -> None: ...


class Flight:
    """Owns a runner's abort flag, which speaks of the step in flight and no other.

    ``_lock`` keeps a cancel and the start or end of a step apart, else a late abort would hit the next step, which
    computes for somebody else. ``compute`` and ``forget`` belong to the computing thread, the rest to any.
    """

    def __init__(self, runner: Abortable) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        self._ids: frozenset[str] = frozenset()
        self._cancelled: set[str] = set()
        self._started_s: float | None = None

    def __repr__(self) -> str:
        return f"Flight({sorted(self._ids)}, cancelled={len(self._cancelled)})"

    @property
    def cancelled(self) -> frozenset[str]:
        """Requests whose cancel has been asked for and not yet been applied."""
        return frozenset(self._cancelled)

    @property
    def step_s(self) -> float:
        """How long the current step has been running; 0 between steps."""
        started_s = self._started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    def cancel(self, request_id: str) -> None:
        """Nobody waits for this request any more; a step that computes for nobody else is aborted at once."""
        with self._lock:
            self._cancelled.add(request_id)
            if self._ids and self._ids <= self._cancelled:
                self._runner.set_abort(on=True)

    def stop(self) -> None:
        """Abort whatever is being computed."""
        with self._lock:
            self._runner.set_abort(on=True)

    def forget(self, request_id: str) -> None:
        """The cancel has been applied."""
        self._cancelled.discard(request_id)

    def compute(self, ids: frozenset[str], decode: Callable[[], int]) -> int:
        """Run one decode for these requests; returns its status. One for nobody begins with the flag already set."""
        self._started_s = time.monotonic()
        with self._lock:
            self._ids = ids
            self._runner.set_abort(on=ids <= self._cancelled)
        status = decode()
        with self._lock:
            self._ids = frozenset()
        self._started_s = None
        return status
