"""What is installed in the models directory, and whether its digest is known to be right.

Beside ``NAME.gguf`` lies ``NAME.gguf.json``: the digest that was measured, with the size and the modification time it
was measured at. While those two still match, a start need not hash the file again.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edged import config
from edged.catalogue.entries import Entry
from edged.durable import sync_directory
from edged.errors import CatalogueError

_RECORD_LIMIT_BYTES = 65_536


class State(StrEnum):
    """What a model's file is; ``unverified`` has the right size, and its digest has not been checked yet."""

    INSTALLED = "installed"
    MISSING = "missing"
    PARTIAL = "partial"
    CORRUPT = "corrupt"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Installed:
    """One model as it lies on disk; ``bytes`` is what is there now, 0 when missing."""

    name: str
    path: Path
    bytes: int
    state: State


@dataclass(frozen=True, slots=True)
class _Measured:
    """The sidecar: a digest and the file it was measured on."""

    sha256: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Files:
    """Every path that belongs to one model; ``name`` comes from the catalogue, never from a request."""

    directory: Path
    name: str

    def _path(self, suffix: str) -> Path:
        return self.directory / f"{self.name}.gguf{suffix}"

    @property
    def final(self) -> Path:
        return self._path("")

    @property
    def part(self) -> Path:
        return self._path(".part")

    @property
    def part_record(self) -> Path:
        return self._path(".part.json")

    @property
    def sidecar(self) -> Path:
        return self._path(".json")

    @property
    def lock(self) -> Path:
        return self._path(".lock")

    @property
    def wheels(self) -> Path:
        return self._path(".wheels")

    @property
    def final_bytes(self) -> int:
        return _size_bytes(self.final)

    @property
    def partial_bytes(self) -> int:
        """What a pull may go on with: bytes of the file and complete wheels."""
        return _size_bytes(self.part) + sum(_size_bytes(path) for path in self.wheels.glob("*/*.whl"))

    def drop_partial(self) -> None:
        for path in (self.part, self.part_record):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.wheels, ignore_errors=True)

    @property
    def optimized_record(self) -> Path:
        return self.directory / f"{self.name}.optimized.json"

    @property
    def optimizing(self) -> Path:
        """What an optimization has measured so far."""
        return self.directory / f"{self.name}.optimizing.json"

    def optimized(self, weight_format: str) -> Path:
        return self.directory / f"{self.name}.{weight_format}.gguf"

    def optimized_part(self, weight_format: str) -> Path:
        return self.directory / f"{self.name}.{weight_format}.gguf.part"

    def drop_optimized(self, *, keep: Path | None = None, suffix: str = ".gguf") -> int:
        """Delete ``NAME.FORMAT.gguf`` and return the bytes freed; formats are upper case, names of models are not."""
        freed_bytes = 0
        for path in self.directory.glob(f"{self.name}.*{suffix}"):
            middle = path.name[len(self.name) + 1 : -len(suffix)]
            if path != keep and middle.isupper() and "." not in middle:
                freed_bytes += _size_bytes(path)
                path.unlink(missing_ok=True)
        return freed_bytes


class Store:
    """The models directory."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else config.models_directory()

    def __repr__(self) -> str:
        return f"Store({str(self.directory)!r})"

    def files(self, entry: Entry) -> Files:
        return Files(self.directory, entry.name)

    def status(self, entry: Entry) -> Installed:
        """Say what is there without reading the file itself."""
        files = self.files(entry)
        final = _stat(files.final)
        if final is None:
            partial_bytes = files.partial_bytes
            state = State.PARTIAL if partial_bytes else State.MISSING
            return Installed(entry.name, files.final, partial_bytes, state)
        return Installed(entry.name, files.final, final.st_size, self._state(entry, final))

    def _state(self, entry: Entry, found: os.stat_result) -> State:
        if found.st_size != entry.bytes:
            return State.CORRUPT
        record = read_record(self.files(entry).sidecar)
        if record is None or (record.get("bytes"), record.get("mtime_ns")) != (found.st_size, found.st_mtime_ns):
            return State.UNVERIFIED
        return State.INSTALLED if record.get("sha256") == entry.sha256 else State.CORRUPT

    def verify(self, entry: Entry) -> Installed:
        """Hash the file, remember the result, and say what it is. Raises: CatalogueError when it cannot be read."""
        found = self.status(entry)
        if found.state in (State.MISSING, State.PARTIAL) or found.bytes != entry.bytes:
            return found
        files = self.files(entry)
        try:
            digest, read = digest_of(files.final)
        except OSError as exc:
            raise CatalogueError(f'model "{entry.name}" cannot be read: {exc.strerror}') from exc
        with suppress(OSError):  # a read-only directory: the answer counts even where it cannot be remembered
            write_record(files.sidecar, asdict(_Measured(digest, read.st_size, read.st_mtime_ns)))
        state = State.INSTALLED if digest == entry.sha256 else State.CORRUPT
        return Installed(entry.name, files.final, read.st_size, state)

    def usable(self, entry: Entry) -> Path:
        """The path of a file that is what the catalogue promises; hashes it only where that is not known yet.

        Raises: CatalogueError that names the command to run.
        """
        found = self.status(entry)
        if found.state is State.UNVERIFIED:
            found = self.verify(entry)
        if found.state is State.INSTALLED:
            return found.path
        what = {State.MISSING: "is not installed", State.PARTIAL: "is only partly downloaded"}
        problem = what.get(found.state, "is damaged on disk")
        raise CatalogueError(f'model "{entry.name}" {problem}: run: edged models pull {entry.name}')

    def install(self, entry: Entry) -> Installed:
        """Give a part its final name. The caller holds the lock and has checked the digest of the synced bytes.

        Raises: OSError.
        """
        files = self.files(entry)
        files.part.replace(files.final)
        found = files.final.stat()
        write_record(files.sidecar, asdict(_Measured(entry.sha256, found.st_size, found.st_mtime_ns)))
        sync_directory(self.directory)
        files.drop_partial()
        return self.status(entry)

    def remove(self, entry: Entry) -> int:
        """Delete everything of one model and return the bytes freed.

        Raises: CatalogueError while it is being pulled or optimized.
        """
        files = self.files(entry)
        if not self.directory.is_dir():
            return 0
        with self.lock(entry, wait=False):
            freed_bytes = files.final_bytes + files.partial_bytes
            for path in (files.final, files.sidecar, files.optimized_record, files.optimizing):
                path.unlink(missing_ok=True)
            files.drop_partial()
            freed_bytes += files.drop_optimized() + files.drop_optimized(suffix=".gguf.part")
        return freed_bytes

    @contextmanager
    def lock(self, entry: Entry, *, wait: bool, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the model for this process; the kernel lets go of it when the process dies, however it dies.

        Raises: CatalogueError where another process holds it and ``wait`` is false.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.files(entry).lock, flags, 0o644)
        try:
            _take(descriptor, entry.name, wait=wait, on_wait=on_wait)
            yield
        finally:
            os.close(descriptor)


def digest_of(path: Path) -> tuple[str, os.stat_result]:
    """The SHA-256 of a file in hex, with the stat of the very file that was read. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno())


def read_record(path: Path, *, limit_bytes: int = _RECORD_LIMIT_BYTES) -> dict[str, Any] | None:
    """Read one of our small JSON files; None where there is none or it is not one. Never follows a symlink."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            record = json.loads(file.read(limit_bytes))
        except (ValueError, RecursionError, OSError):
            return None
    return record if isinstance(record, dict) else None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replace one of our small JSON files at once or not at all. Raises: OSError."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _stat(path: Path) -> os.stat_result | None:
    """Stat of a regular file, symlinked or not; None for anything else."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _size_bytes(path: Path) -> int:
    found = _stat(path)
    return found.st_size if found else 0


def _take(descriptor: int, name: str, *, wait: bool, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
    else:
        return
    if not wait:
        raise CatalogueError(f'model "{name}" is being pulled or optimized by another process')
    on_wait()
    fcntl.flock(descriptor, fcntl.LOCK_EX)
