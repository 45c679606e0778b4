"""How far learning has come with each key of a task: a small file, on disk before anything that follows from it."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edged.calibration.learning import Progress

FILE_NAME = "progress.json"
_MOST_KEYS = 8
_MOST_BYTES = 65_536


class _Kept(msgspec.Struct):
    """By key id, the newest last."""

    keys: dict[str, Progress] = {}


def recall(directory: Path, key: str) -> Progress | None:
    """None where nothing was noted, or what was noted cannot be read."""
    return _kept(directory).get(key)


def note(directory: Path, key: str, progress: Progress) -> None:
    """Replace what was noted of a key. Raises: OSError."""
    others = {name: known for name, known in _kept(directory).items() if name != key}
    newest = dict([*others.items(), (key, progress)][-_MOST_KEYS:])
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = directory / f"{FILE_NAME}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Kept(newest)))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(directory / FILE_NAME)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_directory(directory)


def forget(directory: Path) -> None:
    """Raises: OSError."""
    for name in (FILE_NAME, f"{FILE_NAME}.new"):
        with contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()


def sync_directory(path: Path) -> None:
    """Have names that were changed survive a power cut. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept(directory: Path) -> Mapping[str, Progress]:
    try:
        with (directory / FILE_NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_BYTES), type=_Kept).keys
    except (OSError, msgspec.MsgspecError):
        return {}
