"""One task that is learnt: its observations, the artefact in use, the fit that runs. Owned by the learning thread."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from edged.calibration import artefact as artefacts
from edged.calibration.artefact import Artefact, LabelSource
from edged.calibration.heads import HeadKey, HeadUnusable
from edged.calibration.learning import Progress, rolled_back
from edged.calibration.shelf import Shelf, Version
from edged.config import TaskFile
from edged.errors import EdgedError
from edged.learning import journal, memory
from edged.learning.child import Child, Failure, Order, Result
from edged.learning.journal import Event
from edged.learning.lesson import Lesson, broken_before
from edged.learning.observations import Observation
from edged.learning.store import Store, read, worth_keeping
from edged.learning.words import promise

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
        return _signature(self._store.path) != self._stored

    def _begin_anew(self, key: HeadKey) -> None:
        """Other weights, or no past: what is kept under this key is what there is to learn from."""
        self._cancel()
        self._store.close()
        self._stored = _signature(self._store.path)
        self._lesson = Lesson(self._task.target, memory.recall(self._directory, key.id))
        try:
            self._attend(read(self._directory), key)
        except OSError as exc:
            log.warning("task=%s what was learnt cannot be read: error=%r", self._task.name, exc.strerror)
        if self._lesson.labels and memory.recall(self._directory, key.id) is None:
            # Labels without a memory of what they have certified: they certify nothing more.
            self._lesson.progress = Progress(fresh_from=self._lesson.next_number)

    def _attend(self, observations: Iterable[Observation], key: HeadKey) -> None:
        for observation in observations:
            if observation.key == key.id:
                self._lesson.note(observation)

    def _take_from_shelf(self, key: HeadKey) -> None:
        number = 0
        try:
            versions = self._shelf.versions(self._task.name)
            number = next((version.number for version in versions if version.is_current), 0)
            artefact = self._shelf.current(key)
        except HeadUnusable as exc:
            self._stand(Standing(key=key, version=number, problem=exc.message))
            return
        except OSError as exc:
            self._stand(Standing(key=key, problem=f"its versions cannot be read: {exc.strerror}"))
            return
        problem = None if artefact else why_nothing_is_in_use(versions)
        self._stand(Standing(key=key, artefact=artefact, version=number, problem=problem))

    def _stand(self, standing: Standing) -> None:
        before, self.standing = self.standing, standing
        if (standing.key, standing.version, standing.problem) == (before.key, before.version, before.problem):
            return
        said = promise(standing.artefact, standing.problem)
        log.info("task=%s version=%d %s", self._task.name, standing.version, said)
        if standing.problem is not None and standing.version:
            self._note("stale", standing.problem, version=standing.version)

    # -- what is kept ------------------------------------------------------------------------------------------------

    def keep(self, observations: Sequence[Observation]) -> None:
        """Raises: OSError where they are not on disk; none of them is then."""
        if self._was_forgotten() and self.standing.key is not None:
            self._begin_anew(self.standing.key)
        key, first = self.standing.key, self._lesson.next_number
        if key is not None and not first and not self._lesson.labels:
            memory.note(self._directory, key.id, self._lesson.progress)
        numbered = [
            msgspec.structs.replace(seen, number=number) for number, seen in enumerate(observations, start=first)
        ]
        self._store.append(numbered)
        self._stored = _signature(self._store.path)
        if key is not None:
            self._attend(numbered, key)
        if key is not None and self._store.needs_room(self._lesson.labels, self._task.learn.max_labels):
            self._make_room(key)

    def _make_room(self, key: HeadKey) -> None:
        most = self._task.learn.max_labels
        kept = worth_keeping(list(read(self._directory)), key=key.id, max_labels=most)
        self._store.keep(kept)
        self._stored = _signature(self._store.path)
        self._lesson = Lesson(self._task.target, self._lesson.progress)
        self._attend(kept, key)

    # -- what is made of it ------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether a fit would be worth its time."""
        if not self._task.learn.enabled or self.standing.key is None or self.is_fitting:
            return False
        in_use = self.standing.artefact
        if in_use is not None and in_use.source is LabelSource.GOLD and in_use.threshold is not None:
            return False  # measured on labels of one's own: what the cloud says is no better
        return self._lesson.is_due() and can_fit()

    def begin(self, command: Sequence[str], *, time_limit_s: float, memory_limit_bytes: int) -> None:
        """Start a fit."""
        key, target = self.standing.key, self._task.target
        assert key is not None
        assert target.max_error is not None
        order = Order(
            directory=str(self._directory),
            key=key,
            options=self._task.option_names,
            max_error=target.max_error,
            delta=target.delta,
            progress=asdict(self._lesson.progress),
            running=self._running(),
            made_at=journal.now(),
        )
        try:
            self._remember(self._lesson.began())
            self._child = Child(
                order, command=command, time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes
            )
        except OSError as exc:
            self._failed(f"no process could be started: {exc.strerror}")

    def _running(self) -> str | None:
        """The artefact in use where it came of learning, as its file."""
        in_use = self.standing.artefact
        if in_use is None or in_use.threshold is None or in_use.source is LabelSource.GOLD:
            return None
        return artefacts.dump(in_use).decode()

    def _remember(self, progress: Progress) -> None:
        """Raises: OSError where it is not on disk; it holds for this run all the same."""
        self._lesson.progress = progress
        if self.standing.key is not None:
            memory.note(self._directory, self.standing.key.id, progress)

    def collect(self) -> None:
        """Take over what a fit that is over came to."""
        if self._child is None or (result := self._child.poll()) is None:
            return
        self._child = None
        if self._was_forgotten():
            return  # so was what this was fitted on; the next look begins anew
        if isinstance(result, Failure):
            self._failed(result.why)
            return
        key = self.standing.key
        try:
            self._remember(msgspec.convert(result.progress, Progress))
        except (OSError, msgspec.ValidationError) as exc:
            self._failed(f"what it came to cannot be kept: {exc}")
            return
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
        since = 0
        while (artefact := self.standing.artefact) is not None and self.standing.key is not None:
            version = self.standing.version
            broken = self._lesson.broken(artefact, version) or (since and self._broken_since(artefact, since)) or None
            if broken is None or not self._roll_back(broken, self.standing.key):
                return
            since = since or version

    def _broken_since(self, artefact: Artefact, version: int) -> str | None:
        """Whether a version that was replaced would have kept its promise on what broke a later one's."""
        key = self.standing.key
        try:
            seen = [one for one in read(self._directory) if key and one.key == key.id and one.version >= version]
            return broken_before(artefact, seen)
        except OSError as exc:
            return f"what was learnt cannot be read: {exc.strerror}"
        except HeadUnusable as exc:
            return exc.message

    def _roll_back(self, why: str, key: HeadKey) -> bool:
        version = self.standing.version
        try:
            self._remember(rolled_back(self._lesson.progress, self._lesson.next_number))
            back_to = self._shelf.roll_back(self._task.name, why)
        except OSError as exc:
            log.warning("task=%s cannot be rolled back: error=%r", self._task.name, exc.strerror)
            self._stand(Standing(key=key, problem=why))
            return False
        self._note("rolled_back", why, version=version)
        log.warning("task=%s version=%d rolled back to %s: %s", self._task.name, version, back_to or "none", why)
        self._cancel()
        self._take_from_shelf(key)
        self._seen = (key, _signature(self._directory / "current"))
        return True

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


def why_nothing_is_in_use(versions: Sequence[Version]) -> str:
    """Of a task without a version in use."""
    withdrawn = next((version.withdrawn for version in reversed(versions) if version.withdrawn), None)
    return f"its last version was taken back: {withdrawn}" if withdrawn else "nothing was measured yet"


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
