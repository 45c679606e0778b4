"""How far learning has come with each key of a task: a small file, on disk before anything that follows from it."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edged.calibration.learning import Progress
from edged.durable import replace_file

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
    replace_file(directory / FILE_NAME, msgspec.json.encode(_Kept(newest)), mode=0o600)


def forget(directory: Path) -> None:
    """Raises: OSError."""
    for name in (FILE_NAME, f"{FILE_NAME}.new"):
        with contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()


def _kept(directory: Path) -> Mapping[str, Progress]:
    try:
        with (directory / FILE_NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_BYTES), type=_Kept).keys
    except (OSError, msgspec.MsgspecError):
        return {}
