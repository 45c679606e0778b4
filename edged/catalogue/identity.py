"""Which weights a configured model runs on."""

from pathlib import Path

from edged.catalogue.entries import find, load
from edged.catalogue.optimized import in_use
from edged.catalogue.store import Store, digest_of, read_record, write_record
from edged.config import ModelConfig, state_directory
from edged.errors import CatalogueError

_KNOWN = "file-digests.json"
_MOST_KNOWN = 256


def model_sha256(model: ModelConfig) -> str:
    """The SHA-256 in hex of the file a worker would load. A file of one's own is read once, then known by its stat.

    Blocks while it reads. Raises: CatalogueError, OSError.
    """
    if model.catalogue is not None:
        entry, store = find(model.catalogue, load()), Store()
        store.usable(entry)
        return in_use(store, entry).sha256
    assert model.file is not None
    if not model.file.is_file():
        raise CatalogueError(f"the file of model {model.name!r} does not exist")
    return _digest(model.file.resolve(), state_directory() / _KNOWN)


def _digest(path: Path, known_path: Path) -> str:
    known = read_record(known_path) or {}
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    match known.get(str(path)):
        case [digest, *rest] if rest == seen and isinstance(digest, str):
            return digest
    digest, stat = digest_of(path)
    known.pop(str(path), None)
    known[str(path)] = [digest, stat.st_size, stat.st_mtime_ns, stat.st_ino]
    try:
        known_path.parent.mkdir(parents=True, exist_ok=True)
        write_record(known_path, dict(list(known.items())[-_MOST_KNOWN:]))
    except OSError:
        return digest  # a state directory that cannot be written: it is read again next time
    return digest
