"""Candidate files: foreseen, written beside the model as ``NAME.FORMAT.gguf.part``, identified, removed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.catalogue.store import Files, digest_of
from edged.engine import probe_protocol as protocol
from edged.errors import EngineError
from edged.optimize.child import Probe
from edged.optimize.state import Trial

MOSTLY = 0.5
"""A format that llama.cpp cannot use for more than this share of the tensors is not that format."""

_SPARE_BYTES = 50_000_000


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def why_not(source: Path, weight_format: str, description: str) -> str | None:
    """Why a format need not be tried, or None; ``description`` is what llama.cpp says of the published file.

    Raises: ProbeFailed where llama.cpp refuses it altogether."""
    if weight_format in description.replace(" - Medium", "_M").split():
        return "is what was published"
    with _probe() as probe:
        foreseen = probe.ask(protocol.Foresee(str(source), weight_format), protocol.Foreseen)
    if foreseen.fallback_share > MOSTLY:
        return (
            f"{foreseen.fallback_share:.0%} of the tensors have rows that are no multiple of its block: "
            "llama.cpp falls back to other formats"
        )
    return None


def write(
    source: Path, files: Files, weight_format: str, *, threads: int, free: Callable[[Path], int] = free_bytes
) -> Path:
    """Write and sync one candidate.

    Raises: ProbeFailed, EngineError where the disk has no room; nothing is left then.
    """
    part = files.optimized_part(weight_format)
    try:
        with _probe() as probe:
            foreseen = probe.ask(protocol.Foresee(str(source), weight_format), protocol.Foreseen)
            needed_bytes = foreseen.weight_bytes + _SPARE_BYTES
            if (room_bytes := free(files.directory)) < needed_bytes:
                raise EngineError(
                    f"not enough free disk in {files.directory}: {weight_format} needs {needed_bytes / 1e6:.1f} MB, "
                    f"{room_bytes / 1e6:.1f} MB are free"
                )
            probe.ask(protocol.Write(str(source), str(part), weight_format, threads), protocol.Written)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def identify(part: Path, trial: Trial) -> None:
    """Note the candidate's digest; what was measured of a file with another one is forgotten."""
    digest, found = digest_of(part)
    if trial.sha256 != digest:
        trial.sha256, trial.bytes = digest, found.st_size
        trial.pairs, trial.scores = [], {}


@contextmanager
def _probe() -> Iterator[Probe]:
    """A process for one file: the quantizer may crash on it."""
    probe = Probe()
    try:
        yield probe
    finally:
        probe.close()
