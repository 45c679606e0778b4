"""The artefacts of every task on disk: ``DIRECTORY/TASK/NNNN.json``, and ``current`` that names the one in use."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.calibration.artefact import MAX_ARTEFACT_BYTES, Artefact, dump, parse, read
from edged.calibration.heads import HeadKey, HeadUnusable
from edged.durable import replace_file

MOST_VERSIONS = 5
_NUMBER = re.compile(r"([0-9]{4,9})\.json")
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CURRENT_LIMIT_BYTES = 65_536
_WHY_CHARACTERS = 500
_READS = 3


class _Current(msgspec.Struct):
    """``number`` is in use, None: nothing is. ``withdrawn`` says why versions are not to be used again."""

    number: int | None = None
    withdrawn: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One file of a task. Either it is an ``artefact`` or there is a ``problem`` with it.

    ``withdrawn`` says why it was rolled back, None where it was not.
    """

    number: int
    path: Path
    is_current: bool
    artefact: Artefact | None
    problem: str | None
    withdrawn: str | None


class Shelf:
    """The artefacts of all tasks, safe for several processes: readers never see half a file and never wait."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"Shelf({str(self._directory)!r})"

    def current(self, key: HeadKey) -> Artefact | None:
        """What is in use for the key's task; None where nothing is.

        Raises: HeadUnusable where it is broken, or was made for another model, template, sampler or definition.
        """
        place = self._place(task_name(key))
        for _ in range(_READS):  # the file may be the oldest of five newer ones by the time it is opened
            current = _current(place)
            if current.number is None:
                return None
            try:
                return parse(_content(_path(place, current.number), MAX_ARTEFACT_BYTES), key)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise HeadUnusable(f"version {current.number} cannot be read: {exc.strerror}") from exc
        raise HeadUnusable(f"version {current.number} is gone")

    def put(self, artefact: Artefact) -> int:
        """Store a new version, use it from now on, drop the oldest over five. Returns its number.

        Raises: OSError, ValueError where it would not be read again.
        """
        data = dump(artefact)
        place = self._place(task_name(artefact.key))
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            current = _repaired(place)
            known = _numbers(place)
            number = max((*known, current.number or 0, *map(int, current.withdrawn)), default=0) + 1
            replace_file(_path(place, number), data)
            kept = [*known, number][-MOST_VERSIONS:]
            withdrawn = {old: why for old, why in current.withdrawn.items() if int(old) in kept}
            replace_file(place / "current", msgspec.json.encode(_Current(number, withdrawn)))
            for old in known:
                if old not in kept:
                    _path(place, old).unlink(missing_ok=True)
        return number

    def versions(self, task: str) -> tuple[Version, ...]:
        """All versions of a task by name, the oldest first."""
        place = self._place(task)
        current = _repaired(place)
        return tuple(_version(place, number, current) for number in _numbers(place))

    def roll_back(self, task: str, why: str) -> int | None:
        """Withdraw the version in use for good and use the newest one before it that was not withdrawn.

        Returns its number; None where there is none: the task is uncertified now. Raises: OSError.
        """
        place = self._place(task)
        if not place.is_dir():
            return None
        with _alone(place):
            current = _repaired(place)
            if current.number is None:
                return None
            current.withdrawn[str(current.number)] = why[:_WHY_CHARACTERS]
            left = [n for n in _numbers(place) if n < current.number and str(n) not in current.withdrawn]
            current.number = left[-1] if left else None
            replace_file(place / "current", msgspec.json.encode(current))
        return current.number

    def _place(self, task: str) -> Path:
        if not _TASK_NAME.fullmatch(task):
            raise ValueError(f"a task's name is of letters, digits, '.', '_' and '-', at most 64, not {task[:80]!r}")
        return self._directory / task


def task_name(key: HeadKey) -> str:
    """The task's own name, from ``NAME@DEFINITION``."""
    return key.task.partition("@")[0]


def _version(place: Path, number: int, current: _Current) -> Version:
    artefact, problem, path = None, None, _path(place, number)
    try:
        artefact = read(_content(path, MAX_ARTEFACT_BYTES))
    except HeadUnusable as exc:
        problem = exc.message
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    return Version(
        number=number,
        path=path,
        is_current=number == current.number,
        artefact=artefact,
        problem=problem,
        withdrawn=current.withdrawn.get(str(number)),
    )


def _path(place: Path, number: int) -> Path:
    return place / f"{number:04d}.json"


def _numbers(place: Path) -> list[int]:
    if not place.is_dir():
        return []
    return sorted(int(found[1]) for path in place.iterdir() if (found := _NUMBER.fullmatch(path.name)))


def _current(place: Path) -> _Current:
    """Raises: HeadUnusable where the file is there and is not one of ours."""
    try:
        content = _content(place / "current", _CURRENT_LIMIT_BYTES)
        current = msgspec.json.decode(content, type=_Current)
        if not all(number.isdecimal() for number in current.withdrawn):
            raise HeadUnusable("the file `current` names a version that is no number")
    except FileNotFoundError:
        return _Current()
    except OSError as exc:
        raise HeadUnusable(f"the file `current` cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise HeadUnusable(f"the file `current` is broken: {exc}") from exc
    return current


def _repaired(place: Path) -> _Current:
    """As ``_current``; a broken file names nothing, and the next one written replaces it."""
    try:
        return _current(place)
    except HeadUnusable:
        return _Current()


def _content(path: Path, limit_bytes: int) -> bytes:
    """The file, and one byte more than the limit where it is longer. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit_bytes + 1)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One writer of a task at a time, of all processes."""
    descriptor = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
