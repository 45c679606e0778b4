"""One task that is learnt: its observations, the artefact in use, the fit that runs. Owned by the learning thread."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.calibration import artefact as artefacts
from edged.calibration.artefact import Artefact
from edged.calibration.heads import HeadKey, HeadUnusable
from edged.calibration.shelf import Shelf
from edged.config import TaskFile
from edged.errors import EdgedError
from edged.learning import journal
from edged.learning.child import Child, Failure, Order, Result
from edged.learning.journal import Event
from edged.learning.lesson import Lesson
from edged.learning.observations import Observation
from edged.learning.store import Store, read, worth_keeping
from edged.learning.words import promise

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What holds for a task now. ``key`` is None where the weights are not known; ``problem`` says why nothing holds.

    ``version`` is the number of the artefact on the shelf, 0 for none.
    """

    key: HeadKey | None = None
    artefact: Artefact | None = None
    version: int = 0
    problem: str | None = None


class Pupil:
    """Every method but ``standing`` and ``is_fitting`` may block; none raises what it does not say."""

    def __init__(self, task: TaskFile, *, directory: Path, shelf: Shelf, key_of: Callable[[TaskFile], HeadKey]) -> None:
        self.standing = Standing(problem="its model's file was not looked at yet")
        self._task = task
        self._directory = directory
        self._shelf = shelf
        self._key_of = key_of
        self._store = Store(directory)
        self._lesson = Lesson(task.target)
        self._child: Child | None = None
        self._seen: tuple[object, ...] = ()
        self._stored: tuple[int, int] | None = None
        self._attempts = 0

    def __repr__(self) -> str:
        return f"Pupil({self._task.name}, version={self.standing.version}, {self._lesson!r}, fitting={self.is_fitting})"

    @property
    def is_fitting(self) -> bool:
        return self._child is not None

    # -- what holds --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See which weights there are, what is on the shelf, and whether somebody had the task forgotten."""
        try:
            key = self._key_of(self._task)
        except (EdgedError, OSError) as exc:
            self._stand(Standing(problem=f"the model's file cannot be read: {exc}"))
            return
        if key != self.standing.key or self._was_forgotten():
            self._begin_anew(key)
        seen = (key, _signature(self._directory / "current"))
        if seen != self._seen:
            self._seen = seen
            self._take_from_shelf(key)

    def _was_forgotten(self) -> bool:
        return self._stored is not None and _signature(self._store.path) != self._stored

    def _begin_anew(self, key: HeadKey) -> None:
        """Other weights, or no past: what is kept under this key is what there is to learn from."""
        self._cancel()
        self._store.close()
        self._stored = None
        self._lesson = Lesson(self._task.target)
        try:
            for observation in read(self._directory):
                if observation.key == key.id:
                    self._lesson.note(observation)
        except OSError as exc:
            log.warning("task=%s what was learnt cannot be read: error=%r", self._task.name, exc.strerror)

    def _take_from_shelf(self, key: HeadKey) -> None:
        version = next((v for v in self._shelf.versions(self._task.name) if v.is_current), None)
        number = version.number if version else 0
        try:
            artefact = self._shelf.current(key)
        except HeadUnusable as exc:
            self._stand(Standing(key=key, version=number, problem=exc.message))
            return
        problem = None if artefact else "nothing was measured yet"
        if artefact is None and any(v.withdrawn for v in self._shelf.versions(self._task.name)):
            problem = "its promise was broken and taken back"
        self._stand(Standing(key=key, artefact=artefact, version=number, problem=problem))

    def _stand(self, standing: Standing) -> None:
        if standing == self.standing:
            return
        self.standing = standing
        said = promise(standing.artefact, standing.problem)
        log.info("task=%s version=%d %s", self._task.name, standing.version, said)
        if standing.problem is not None and standing.version:
            self._note("stale", standing.problem, version=standing.version)

    # -- what is kept ------------------------------------------------------------------------------------------------

    def keep(self, observations: Sequence[Observation]) -> None:
        """Raises: OSError where they are not on disk; none of them is then."""
        if self._was_forgotten() and self.standing.key is not None:
            self._begin_anew(self.standing.key)
        self._store.append(observations)
        self._stored = _signature(self._store.path)
        key = self.standing.key
        for observation in observations:
            if key is not None and observation.key == key.id:
                self._lesson.note(observation)
        if key is not None and self._store.needs_room(self._lesson.labels, self._task.learn.max_labels):
            self._make_room(key)

    def _make_room(self, key: HeadKey) -> None:
        most = self._task.learn.max_labels
        kept = worth_keeping(list(read(self._directory)), key=key.id, max_labels=most)
        self._store.keep(kept)
        self._stored = _signature(self._store.path)
        self._lesson = Lesson(self._task.target)
        for observation in kept:
            self._lesson.note(observation)

    # -- what is made of it ------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether a fit would be worth its time."""
        learns = self._task.learn.enabled and self.standing.key is not None and not self.is_fitting
        return learns and can_fit() and self._lesson.is_due()

    def begin(self, command: Sequence[str], *, time_limit_s: float, memory_limit_bytes: int) -> None:
        """Start a fit."""
        key, target = self.standing.key, self._task.target
        assert key is not None
        self._attempts += 1
        self._lesson.began()
        order = Order(
            directory=str(self._directory),
            key=key,
            options=self._task.option_names,
            max_error=target.max_error,
            cloud_share=target.cloud_share,
            delta=target.delta,
            attempt=self._attempts,
            made_at=journal.now(),
        )
        try:
            self._child = Child(
                order, command=command, time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes
            )
        except OSError as exc:
            self._failed(f"no process could be started: {exc.strerror}")

    def collect(self) -> None:
        """Take over what a fit that is over came to."""
        if self._child is None or (result := self._child.poll()) is None:
            return
        self._child = None
        if isinstance(result, Failure):
            self._failed(result.why)
            return
        key = self.standing.key
        if result.artefact is None or key is None:
            log.info("task=%s labels=%d nothing to take over: %s", self._task.name, result.labels, result.why)
            return
        self._take_over(result, key)

    def _take_over(self, result: Result, key: HeadKey) -> None:
        assert result.artefact is not None
        try:
            artefact = artefacts.parse(result.artefact.encode(), key)
            number = self._shelf.put(artefact)
        except (HeadUnusable, ValueError, OSError) as exc:
            self._failed(f"the result cannot be kept: {exc}")
            return
        self._take_from_shelf(key)
        self._seen = (key, _signature(self._directory / "current"))
        self._note("taken_over", promise(artefact, None), version=number, labels=artefact.labels)

    def judge_audits(self) -> None:
        """Take back promises that the unbiased sample has broken, one version after the other."""
        while (artefact := self.standing.artefact) is not None and self.standing.key is not None:
            broken = self._lesson.broken(artefact, self.standing.version)
            if broken is None:
                return
            version = self.standing.version
            try:
                back_to = self._shelf.roll_back(self._task.name, broken)
            except OSError as exc:
                log.warning("task=%s cannot be rolled back: error=%r", self._task.name, exc.strerror)
                self._stand(Standing(key=self.standing.key, problem=broken))
                return
            self._note("rolled_back", broken, version=version)
            log.warning("task=%s version=%d rolled back to %s: %s", self._task.name, version, back_to or "none", broken)
            self._take_from_shelf(self.standing.key)
            self._seen = (self.standing.key, _signature(self._directory / "current"))

    def close(self) -> None:
        self._cancel()
        self._store.close()

    def _cancel(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None

    def _failed(self, why: str) -> None:
        log.warning("task=%s a fit failed: %s", self._task.name, why)
        self._note("fit_failed", why)

    def _note(self, what: str, why: str, *, version: int | None = None, labels: int = 0) -> None:
        event = Event(at=journal.now(), what=what, why=why, version=version, labels=labels)
        try:
            journal.note(self._directory, event)
        except OSError as exc:
            log.warning("task=%s an event cannot be kept: error=%r", self._task.name, exc.strerror)


def can_fit() -> bool:
    """Whether the library that fits is there: the extra ``calibrate``."""
    return importlib.util.find_spec("sklearn") is not None


def _signature(path: Path) -> tuple[int, int] | None:
    """Tells one state of a small file from another, and a deleted one from a new one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns if path.name == "current" else 0
