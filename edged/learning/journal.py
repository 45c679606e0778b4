"""What happened to a task's artefacts, one JSON line each: for `edged tasks`, and bounded."""

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

FILE_NAME = "events.jsonl"
MOST_EVENTS = 200
_MOST_BYTES = 262_144
_MOST_TEXT_CHARS = 500


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``what`` is one of taken_over, rolled_back, fit_failed, stale, forgotten; ``why`` has the numbers."""

    at: str
    what: str
    why: str = ""
    version: int | None = None
    labels: int = 0


def now() -> str:
    """The time as a label: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def note(directory: Path, event: Event) -> None:
    """Add an event. Raises: OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / FILE_NAME
    event = msgspec.structs.replace(event, why=event.why[:_MOST_TEXT_CHARS])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, b"\n" + msgspec.json.encode(event) + b"\n")
        size_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size_bytes > _MOST_BYTES:
        _shorten(path)


def read(directory: Path) -> list[Event]:
    """The newest events, the oldest of them first; what is no event is passed over. Raises: OSError."""
    try:
        with (directory / FILE_NAME).open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - 2 * _MOST_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            events.append(msgspec.json.decode(line, type=Event))
    return events[-MOST_EVENTS:]


def _shorten(path: Path) -> None:
    kept = read(path.parent)[-MOST_EVENTS // 2 :]
    fresh = path.with_name(f"{FILE_NAME}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"".join(msgspec.json.encode(event) + b"\n" for event in kept))
    fresh.replace(path)
