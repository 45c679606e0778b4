"""Learning beside the daemon: one thread keeps what was seen, has it fitted, and says what holds for each task.

The event loop hands over and reads; it never waits. Whatever fails here, a full disk or a fit that crashes, costs
learning and no request.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edged.calibration.heads import HeadKey
from edged.calibration.shelf import Shelf
from edged.config import TaskFile
from edged.learning.child import COMMAND, MEMORY_LIMIT_BYTES, TIME_LIMIT_S
from edged.learning.observations import Observation
from edged.learning.pupil import Pupil, Standing

log = logging.getLogger(__name__)

KeyOf = Callable[[TaskFile], HeadKey]
"""The key of a task on its local model. Blocks; raises EdgedError, OSError where the weights are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the thread paces itself. ``keep_every_s`` is the most a power cut can lose."""

    keep_every_s: float = 0.5
    look_every_s: float = 5.0
    retry_every_s: float = 5.0
    queue_observations: int = 2_000
    command: Sequence[str] = COMMAND
    time_limit_s: float = TIME_LIMIT_S
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningStats:
    """Observations ``kept`` since the start, ``queued`` in memory, ``dropped``; ``fitting`` counts fits that run."""

    kept: int = 0
    queued: int = 0
    dropped: int = 0
    fitting: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Counts:
    kept: int = 0
    dropped: int = 0
    error: str | None = field(default=None)


class Learning:
    """All tasks of the box. ``take`` and ``standing`` return at once, from any thread."""

    def __init__(self, tasks: Sequence[TaskFile], *, directory: Path, key_of: KeyOf, tuning: Tuning = Tuning()) -> None:
        shelf = Shelf(directory)
        self._tuning = tuning
        self._pupils: Mapping[str, Pupil] = {
            task.name: Pupil(task, directory=directory / task.name, shelf=shelf, key_of=key_of) for task in tasks
        }
        self._standings = dict.fromkeys(self._pupils, Standing(problem="its model's file was not looked at yet"))
        self._queue: deque[tuple[str, Observation]] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._counts = _Counts()
        self._closing = False
        self._look_due_s = 0.0
        self._retry_due_s = 0.0
        self._thread = threading.Thread(target=self._run, name="edged-learning", daemon=True)

    def __repr__(self) -> str:
        stats = self.stats
        return f"Learning(tasks={len(self._pupils)}, kept={stats.kept}, queued={stats.queued}, fitting={stats.fitting})"

    @property
    def stats(self) -> LearningStats:
        with self._lock:
            return LearningStats(
                kept=self._counts.kept,
                queued=len(self._queue),
                dropped=self._counts.dropped,
                fitting=sum(pupil.is_fitting for pupil in self._pupils.values()),
                error=self._counts.error,
            )

    def standing(self, task: str) -> Standing:
        """What holds for a task now."""
        return self._standings.get(task) or Standing(problem="it is no task of this box")

    def start(self) -> None:
        """Begin; without tasks there is nothing to do."""
        if self._pupils:
            self._thread.start()

    def take(self, task: str, observation: Observation) -> None:
        """Keep an observation; where too many wait the oldest is dropped and counted."""
        with self._lock:
            self._queue.append((task, observation))
            if len(self._queue) > self._tuning.queue_observations:
                self._queue.popleft()
                self._counts.dropped += 1
            if len(self._queue) == 1:
                self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """Keep what is queued, end a fit that runs, and stop. Blocks; False where it took too long."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._look()
                self._keep(self._next_batch())
                self._teach()
            self._keep(self._drained())
            if self._queue:
                log.error("closed with observations that could not be kept: dropped=%d", len(self._queue))
        finally:
            if not self._closing:  # nobody watches over the promises any more
                self._standings = dict.fromkeys(self._pupils, Standing(problem="learning has stopped: see the log"))
            for pupil in self._pupils.values():
                pupil.close()

    def _next_batch(self) -> list[tuple[str, Observation]]:
        """Wait for an observation, then a little longer for others; empty when it is time to look around."""
        pause_s = self._tuning.keep_every_s
        with self._lock:
            self._wake.wait_for(
                lambda: self._closing or self._queue, self._tuning.look_every_s if self._idle else pause_s
            )
            if self._queue:
                self._wake.wait_for(lambda: self._closing, pause_s)
        return [] if time.monotonic() < self._retry_due_s else self._drained()

    @property
    def _idle(self) -> bool:
        return not any(pupil.is_fitting for pupil in self._pupils.values())

    def _drained(self) -> list[tuple[str, Observation]]:
        with self._lock:
            batch = list(self._queue)
            self._queue.clear()
        return batch

    def _look(self) -> None:
        """Weights, shelves and stores as they are now: other programs change them too."""
        if (now_s := time.monotonic()) < self._look_due_s:
            return
        self._look_due_s = now_s + self._tuning.look_every_s
        for name, pupil in self._pupils.items():
            pupil.look()
            self._standings[name] = pupil.standing

    def _keep(self, batch: Sequence[tuple[str, Observation]]) -> None:
        for name, pupil in self._pupils.items():
            mine = [observation for task, observation in batch if task == name]
            if not mine:
                continue
            try:
                pupil.keep(mine)
            except OSError as exc:
                self._put_back([(name, observation) for observation in mine], exc)
            else:
                self._settle(len(mine))

    def _put_back(self, batch: Sequence[tuple[str, Observation]], exc: OSError) -> None:
        error = exc.strerror or str(exc)
        if self._counts.error != error:
            log.warning("what is learnt cannot be kept, it waits in memory: error=%r", error)
        self._retry_due_s = time.monotonic() + self._tuning.retry_every_s
        with self._lock:
            self._counts.error = error
            self._queue.extendleft(reversed(batch))
            while len(self._queue) > self._tuning.queue_observations:
                self._queue.popleft()
                self._counts.dropped += 1

    def _settle(self, count: int) -> None:
        if self._counts.error is not None:
            log.warning("what is learnt is kept again: dropped=%d", self._counts.dropped)
        with self._lock:
            self._counts.error = None
            self._counts.kept += count

    def _teach(self) -> None:
        """One fit at a time on the whole box; results take over, broken promises are taken back."""
        for name, pupil in self._pupils.items():
            pupil.judge_audits()
            pupil.collect()
            self._standings[name] = pupil.standing
        if self._closing or not self._idle:
            return
        due = next((pupil for pupil in self._pupils.values() if pupil.is_due()), None)
        if due is not None:
            tuning = self._tuning
            due.begin(tuning.command, time_limit_s=tuning.time_limit_s, memory_limit_bytes=tuning.memory_limit_bytes)
