"""What the model said of each item, kept while a calibration runs and after it: an interrupted one goes on from there.

One file per artefact key: another model, template, way of answering or task definition starts anew. An item is known by
a hash; neither inputs nor answers are in the file.
"""

import base64
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.calibrate.levels import Answered, Scored
from edged.calibration.heads import HeadKey
from edged.calibration.shelf import task_name
from edged.errors import EdgedError
from edged.routing.features import VERSION

FORMAT = 1
FORM = f"with the hidden state; answer features {VERSION}"
"""What is asked of the model beside what the key says."""

MOST_FILES = 4
"""Of one task: its results under other keys, such as another model's, beyond so many are deleted, the oldest first."""

_SYNC_EVERY = 32
_ID_CHARACTERS = 32


class Occupied(EdgedError):
    """Another process is at it."""

    code = "calibration_running"


class _Header(msgspec.Struct):
    format: int
    key: HeadKey
    form: str


class Line(msgspec.Struct, omit_defaults=True):
    """One item: ``l`` the log-probabilities and ``s`` the state of a closed set; ``p``, ``f`` and ``r`` the zero-shot
    score, the features and the rightness of a generated answer; ``c`` the option the cloud chose; ``o`` that the item
    does not fit the model's context."""

    i: str
    l: tuple[tuple[float, ...], ...] = ()  # noqa: E741 - one letter: thousands of lines
    s: str | None = None
    p: float | None = None
    f: tuple[float, ...] | None = None
    r: bool | None = None
    c: int | None = None
    o: bool = False

    def scored(self, label: int) -> Scored:
        return Scored(self.l, None if self.s is None else base64.b64decode(self.s), label)

    def answered(self) -> Answered:
        assert self.p is not None
        assert self.r is not None
        return Answered(self.p, self.f, self.r)


def of_scores(item: str, logprobs: tuple[tuple[float, ...], ...], state: bytes | None) -> Line:
    return Line(item, l=logprobs, s=None if state is None else base64.b64encode(state).decode("ascii"))


def item_id(*parts: str) -> str:
    """What an item is known by."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_ID_CHARACTERS]


class Results:
    """Lines appended as they come. One process at a time; ``close`` when done.

    ``form`` says what is asked of the model beside the key, such as the hidden state. Raises: Occupied, OSError.
    """

    def __init__(self, directory: Path, key: HeadKey, *, form: str, fresh: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{task_name(key)}-{key.id}.jsonl"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._file.close()
            raise Occupied(f"the task {task_name(key)} is being calibrated by another process") from exc
        self._unsynced = 0
        self._lines: dict[str, Line] = {}
        header = _Header(FORMAT, key, form)
        if fresh or not self._resume(header):
            self._begin(header)
            _tidy(directory, self.path)

    def __repr__(self) -> str:
        return f"Results({self.path.name}, {len(self._lines)} items)"

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, item: str) -> Line | None:
        return self._lines.get(item)

    def add(self, line: Line) -> None:
        """Keep one item. It outlives this process at once, a power cut within a few items."""
        self._lines[line.i] = line
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def close(self) -> None:
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def _resume(self, header: _Header) -> bool:
        """Take what lies there, up to the first line that was cut; False where it is another calibration's."""
        end = 0
        for number, (line, length) in enumerate(self._whole_lines()):
            try:
                if number == 0:
                    if msgspec.json.decode(line, type=_Header) != header:
                        return False
                else:
                    found = msgspec.json.decode(line, type=Line)
                    self._lines[found.i] = found
            except msgspec.MsgspecError:
                break
            end += length
        self._file.seek(end)
        self._file.truncate()
        return end > 0

    def _whole_lines(self) -> Iterator[tuple[bytes, int]]:
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            yield line, len(line)

    def _begin(self, header: _Header) -> None:
        self._lines.clear()
        self._file.seek(0)
        self._file.truncate()
        self._file.write(msgspec.json.encode(header) + b"\n")
        self._file.flush()


def _tidy(directory: Path, path: Path) -> None:
    task = path.name.rpartition("-")[0]
    others = [other for other in directory.glob("*.jsonl") if other.name.rpartition("-")[0] == task and other != path]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for other in others[MOST_FILES - 1 :]:
        other.unlink(missing_ok=True)
