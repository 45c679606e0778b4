"""The observations of one task on disk: appended, flushed to the disk itself, and never more than a fixed size."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edged.durable import sync_directory
from edged.learning.observations import Observation, frame, frames

FILE_NAME = "observations"
MODE = 0o600
MAX_STORE_BYTES = 32 * 2**20
MAX_UNLABELLED = 2_000
"""Of what the cloud was not asked so much is kept: it says what the traffic is like."""

_SLACK = 1.25
"""A file may hold so much more than is kept before it is written anew: once in many observations."""


class Store:
    """One file, one writer. Every method blocks, and raises OSError where the disk does not do its part."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._end = 0
        self._file: int | None = None

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {self._end} bytes)"

    @property
    def bytes(self) -> int:
        return self._end

    def open(self) -> None:
        """Take the file, and cut off what a power cut left unfinished at its end."""
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, MODE)
        try:
            os.fchmod(descriptor, MODE)
            end = max((end for end, _ in frames(_content(descriptor))), default=0)
            os.ftruncate(descriptor, end)
        except OSError:
            os.close(descriptor)
            raise
        self._file, self._end = descriptor, end

    def append(self, observations: Sequence[Observation]) -> None:
        """All of them are on disk, or none is."""
        self.open()
        assert self._file is not None
        data = b"".join(map(frame, observations))
        try:
            _write_at(self._file, data, self._end)
            os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            self.close()
            raise
        self._end += len(data)

    def needs_room(self, labels: int, max_labels: int) -> bool:
        """Whether it is time for ``keep``."""
        return labels > max_labels * _SLACK or self._end > MAX_STORE_BYTES * _SLACK

    def keep(self, observations: Sequence[Observation]) -> None:
        """Write the file anew with these alone; until the last moment the old one stands."""
        fresh = self.path.with_name(f"{FILE_NAME}.new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        data = b"".join(map(frame, observations))
        try:
            _write_at(descriptor, data, 0)
            os.fsync(descriptor)
            fresh.replace(self.path)
            sync_directory(self.path.parent)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        self.close()
        self._file, self._end = descriptor, len(data)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def read(directory: Path) -> Iterator[Observation]:
    """What is kept of a task, the oldest first; nothing where there is no file. Raises: OSError."""
    try:
        descriptor = os.open(directory / FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        data = _content(descriptor)
    finally:
        os.close(descriptor)
    for _, observation in frames(data):
        yield observation


def forget(directory: Path) -> bool:
    """Delete what was learnt of a task; whether there was anything. Raises: OSError."""
    found = False
    for name in (FILE_NAME, f"{FILE_NAME}.new"):
        with contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()
            found = True
    return found


def worth_keeping(
    observations: Sequence[Observation], *, key: str, max_labels: int, max_bytes: int = MAX_STORE_BYTES
) -> list[Observation]:
    """What stays when there is too much, in the order it came.

    1. What was scored by other weights or under another definition goes first, all of it.
    2. Of what has no label the oldest over ``MAX_UNLABELLED`` go.
    3. Of the labels over ``max_labels`` the oldest outside the unbiased sample go.
    4. Only where the sample alone is over it, its oldest go: what is left is still a sample of the recent traffic.
    5. The same order until the file is within ``max_bytes``.
    """
    ranked = sorted(enumerate(observations), key=lambda pair: (_rank(pair[1]), pair[0]), reverse=True)
    kept: list[tuple[int, Observation]] = []
    labels = unlabelled = size_bytes = 0
    for place, observation in ranked:
        is_label = observation.label is not None
        size = len(frame(observation))
        if observation.key != key or size_bytes + size > max_bytes:
            continue
        if (labels >= max_labels) if is_label else (unlabelled >= MAX_UNLABELLED):
            continue
        labels, unlabelled, size_bytes = labels + is_label, unlabelled + (not is_label), size_bytes + size
        kept.append((place, observation))
    return [observation for _, observation in sorted(kept, key=lambda pair: pair[0])]


def _rank(observation: Observation) -> int:
    if observation.label is None:
        return 0
    return 2 if observation.is_unbiased else 1


def _content(descriptor: int) -> bytes:
    """The file up to twice what it may hold: another program's file of that name is not read whole."""
    parts, at = [], 0
    while at < 2 * MAX_STORE_BYTES and (part := os.pread(descriptor, 1 << 20, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
