"""A model's weights in the format that was measured to suit this CPU, beside the published file.

``NAME.FORMAT.gguf`` is used instead of ``NAME.gguf`` while ``NAME.optimized.json`` vouches for it: it was made from
the very file the catalogue promises, measured on a CPU of this kind, and still has the digest it had then.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edged.catalogue.entries import Catalogue, Entry, find, load
from edged.catalogue.machine import cpu_identity
from edged.catalogue.store import Store, digest_of, read_record, write_record
from edged.durable import sync_directory


class Fit(StrEnum):
    """Whether the optimized file may stand in for the published one, and if not, why not."""

    USED = "used"
    NONE = "none"
    OTHER_SOURCE = "made from another file"
    OTHER_CPU = "measured on another CPU"
    DAMAGED = "damaged or gone"


@dataclass(frozen=True, slots=True)
class Optimized:
    """What lies beside the published file. ``record`` is the whole of ``NAME.optimized.json``."""

    path: Path
    weight_format: str
    sha256: str
    bytes: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Weights:
    """The file a worker would load: published or optimized, with its digest. ``fit`` says why it is this one."""

    path: Path
    weight_format: str
    sha256: str
    fit: Fit


def resolve(name: str, *, directory: Path | None = None, catalogue: Catalogue | None = None) -> Path:
    """The verified file of a catalogue model, for ``[[model]] catalogue = NAME``; optimized where that was measured.

    Raises: CatalogueError, without a path in it, that says what to run.
    """
    entry = find(name, load() if catalogue is None else catalogue)
    store = Store(directory)
    published = store.usable(entry)
    weights = in_use(store, entry)
    return weights.path if weights.fit is Fit.USED else published


def in_use(store: Store, entry: Entry, *, cpu: str | None = None) -> Weights:
    """Which file is loaded for this entry; hashes the optimized one only where it changed since that was last done."""
    found = find_optimized(store, entry)
    fit = _fit(found, store, entry, cpu_identity() if cpu is None else cpu)
    if found is None or fit is not Fit.USED:
        return Weights(store.files(entry).final, "published", entry.sha256, fit)
    return Weights(found.path, found.weight_format, found.sha256, fit)


def find_optimized(store: Store, entry: Entry) -> Optimized | None:
    """What the record beside the model says, whether or not it may be used; None where there is no readable one."""
    record = read_record(store.files(entry).optimized_record)
    if record is None:
        return None
    weight_format, sha256, size_bytes = record.get("format"), record.get("sha256"), record.get("bytes")
    if not isinstance(weight_format, str) or not isinstance(sha256, str) or not isinstance(size_bytes, int):
        return None
    if not weight_format.replace("_", "").isalnum():  # it becomes part of a path
        return None
    return Optimized(store.files(entry).optimized(weight_format), weight_format, sha256, size_bytes, record)


def install(store: Store, entry: Entry, part: Path, *, weight_format: str, record: Mapping[str, Any]) -> Optimized:
    """Give a written and synced part its final name and vouch for it; an earlier optimized file goes.

    The caller holds the model's lock. ``record`` holds the measurements. Raises: OSError.
    """
    sha256, found = digest_of(part)
    path = store.files(entry).optimized(weight_format)
    store.files(entry).optimized_record.unlink(
        missing_ok=True
    )  # until the new one is there, the published file is used
    part.replace(path)
    whole = {
        "format": weight_format,
        "sha256": sha256,
        "bytes": found.st_size,
        "mtime_ns": path.stat().st_mtime_ns,
        "source_sha256": entry.sha256,
        "cpu": cpu_identity(),
        **record,
    }
    write_record(store.files(entry).optimized_record, whole)
    sync_directory(store.directory)
    store.files(entry).drop_optimized(keep=path)
    return Optimized(path, weight_format, sha256, found.st_size, whole)


def revert(store: Store, entry: Entry) -> int:
    """Use the published file again; returns the bytes freed. The caller holds the model's lock."""
    store.files(entry).optimized_record.unlink(missing_ok=True)
    return store.files(entry).drop_optimized()


def _fit(found: Optimized | None, store: Store, entry: Entry, cpu: str) -> Fit:
    if found is None:
        return Fit.NONE
    if found.record.get("source_sha256") != entry.sha256:
        return Fit.OTHER_SOURCE
    if found.record.get("cpu") != cpu:
        return Fit.OTHER_CPU
    return Fit.USED if _is_whole(found, store, entry) else Fit.DAMAGED


def _is_whole(found: Optimized, store: Store, entry: Entry) -> bool:
    """Trust size and modification time where they are those the digest was taken at; else take it again."""
    try:
        stat = found.path.stat()
        if stat.st_size != found.bytes:
            return False
        if stat.st_mtime_ns == found.record.get("mtime_ns"):
            return True
        digest, stat = digest_of(found.path)
    except OSError:
        return False
    if digest != found.sha256:
        return False
    with suppress(OSError):  # a read-only directory: the answer counts even where it cannot be remembered
        write_record(store.files(entry).optimized_record, {**found.record, "mtime_ns": stat.st_mtime_ns})
    return True


def damaged(store: Store, entry: Entry) -> Optimized | None:
    """The optimized file, hashed again, where it is no longer what was measured; None where it is, or is not there."""
    found = find_optimized(store, entry)
    if found is None:
        return None
    try:
        digest, _ = digest_of(found.path)
    except OSError:
        return found
    return None if digest == found.sha256 else found
