"""``NAME.gguf.part``: the bytes fetched so far, and beside it what is needed to go on with them later.

A model's digest is pinned, so bytes are bytes: a part begun from one single-piece origin may be finished from another.
Only a list of pieces must go on with the same list, since its boundaries are its own.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edged.catalogue.sources import Origin
from edged.catalogue.store import read_record, write_record
from edged.errors import CatalogueError

_MAGIC = b"GGUF"
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head")


class SourceFailed(CatalogueError):
    """One source could not give the file; the next may."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the catalogue promises of one resource; None where it speaks only of the whole it is a piece of."""

    bytes: int | None = None
    sha256: str | None = None


class Part:
    """An open ``.part`` file. ``offset_bytes`` counts within the current piece, ``size_bytes`` within the model."""

    def __init__(self, path: Path, record: Path, *, limit_bytes: int, on_bytes: Callable[[int], None]) -> None:
        self._record = record
        self._limit_bytes = limit_bytes
        self._on_bytes = on_bytes
        self._label = ""
        self._done: list[int] = []
        self._validators: dict[str, str] = {}
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        if self.size_bytes > limit_bytes:
            self._cut(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"Part({self.size_bytes} of {self._limit_bytes} bytes, pieces done {self._done}, from {self._label!r})"

    @property
    def offset_bytes(self) -> int:
        return self.size_bytes - sum(self._done)

    @property
    def is_whole(self) -> bool:
        return self.size_bytes == self._limit_bytes

    @property
    def missing_bytes(self) -> int:
        return self._limit_bytes - self.size_bytes

    def begin(self, origin: Origin) -> int:
        """Prepare to append from an origin and return how many of its pieces are already here."""
        self._label = ",".join(str(piece) for piece in origin.pieces)
        record = read_record(self._record) or {}
        self._validators = _texts(record.get("validators"))
        same = record.get("origin") == self._label
        self._done = _sizes(record.get("done")) if same and len(origin.pieces) > 1 else []
        if sum(self._done) > self.size_bytes or (len(origin.pieces) > 1 and not same):
            self._done = []
            self._cut(0)
        self._save()
        return len(self._done)

    def end_piece(self) -> None:
        """The current piece is complete: what follows belongs to the next one."""
        self._done.append(self.offset_bytes)
        os.fsync(self._descriptor)
        self._save()

    def validator(self, url: str) -> str | None:
        """The strong ETag or date this URL answered with when the bytes here came from it."""
        return self._validators.get(url)

    def remember(self, url: str, validator: str | None) -> None:
        self._validators = {url: validator} if validator else {}
        self._save()

    def rewind(self) -> None:
        """Forget the bytes of the current piece."""
        self._cut(sum(self._done))

    def clear(self) -> None:
        """Forget everything."""
        self._done = []
        self._validators = {}
        self._cut(0)
        self._save()

    def write(self, block: bytes) -> None:
        """Append. Raises: SourceFailed for what cannot be this model, CatalogueError where the disk refuses."""
        if self.size_bytes == 0:
            check_head(block)
        if len(block) > self.missing_bytes:
            raise SourceFailed(f"sends more than the {self._limit_bytes} bytes the catalogue promises")
        try:
            _write_all(self._descriptor, block)
        except OSError as exc:
            raise disk_error(exc) from exc
        self.size_bytes += len(block)
        self._on_bytes(self.size_bytes)

    def sync(self) -> None:
        """Bring the bytes to the disk: a rename must not come before them."""
        os.fsync(self._descriptor)

    def _cut(self, size_bytes: int) -> None:
        os.ftruncate(self._descriptor, size_bytes)
        os.lseek(self._descriptor, size_bytes, os.SEEK_SET)
        self.size_bytes = size_bytes

    def _save(self) -> None:
        record = {"origin": self._label, "done": self._done, "validators": self._validators}
        try:
            write_record(self._record, record)
        except OSError as exc:
            raise disk_error(exc) from exc


def check_head(block: bytes) -> None:
    """Refuse what does not begin like a GGUF file. Raises: SourceFailed that names an HTML page as one."""
    if block.startswith(_MAGIC):
        return
    if block.lstrip()[:16].lower().startswith(_MARKUP):
        raise SourceFailed("sent an HTML page instead of the model (a login or proxy page?)")
    raise SourceFailed("sent something that is not a GGUF file")


def disk_error(exc: OSError) -> CatalogueError:
    """A local write that failed, in words. Asking another source would not help."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return CatalogueError("the disk is full: free some space and pull again, what came is kept")
    return CatalogueError(f"cannot write to the models directory: {exc.strerror or exc}")


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _sizes(value: Any) -> list[int]:
    """Trust our own record only as far as its shape."""
    good = isinstance(value, list) and all(type(item) is int and item > 0 for item in value)
    return list(value) if good else []


def _texts(value: Any) -> dict[str, str]:
    good = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return dict(value) if good else {}
