"""The ledger's files on disk: created private, checked for an owner, moved aside when broken."""

import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from edged.errors import LedgerError
from edged.ledger.schema import APPLICATION_ID

MODE = 0o600
KEPT_ASIDE = 3
_SIDE_FILES = ("", "-wal", "-shm")
_MAGIC = b"SQLite format 3\0"
_ID_AT = slice(68, 72)
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def create_private(path: Path) -> None:
    """Make sure the file exists, belongs to edged and is readable by its owner only (its -wal and -shm inherit that).

    Raises: LedgerError where it cannot be created, is a symbolic link or is another program's database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    except OSError as exc:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be opened for writing: {exc.strerror}"
        raise LedgerError(f"[ledger] path: {path} {reason}") from exc
    try:
        os.fchmod(descriptor, MODE)
        header = os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)
    if _is_foreign(header):
        raise LedgerError(f"[ledger] path: {path} is another program's SQLite database; choose another path")


def _is_foreign(header: bytes) -> bool:
    return header.startswith(_MAGIC) and int.from_bytes(header[_ID_AT], "big") not in (0, APPLICATION_ID)


def is_corruption(error: sqlite3.Error) -> bool:
    """True where SQLite says that the file itself is broken, not the disk, the lock or the statement."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BROKEN


def set_aside(path: Path, label: str) -> Path:
    """Rename the file with its -wal and -shm to ``NAME.LABEL-TIMESTAMP`` and return the new name.

    Only the newest few are kept: a dying SD card must not fill itself with copies of broken ledgers.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (path.with_name(f"{path.name}.{label}-{stamp}{suffix}") for suffix in _suffixes())
    target = next(name for name in names if not name.exists())
    for side in _SIDE_FILES:
        if (source := path.with_name(path.name + side)).exists():
            source.rename(target.with_name(target.name + side))
    _forget_oldest(path, label)
    return target


def _suffixes() -> Iterator[str]:
    """Nothing, then -1, -2, ...: the clock may show the same second twice."""
    yield ""
    number = 0
    while True:
        number += 1
        yield f"-{number}"


def _forget_oldest(path: Path, label: str) -> None:
    prefix = f"{path.name}.{label}-"
    names = [name for name in path.parent.iterdir() if name.name.startswith(prefix)]
    aside = [name for name in names if not name.name.endswith(_SIDE_FILES[1:])]
    for old in sorted(aside, key=lambda name: name.stat().st_mtime)[:-KEPT_ASIDE]:
        for side in _SIDE_FILES:
            old.with_name(old.name + side).unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Bytes of the file itself; 0 where it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from another one of the same name."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
