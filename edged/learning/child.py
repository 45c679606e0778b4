"""A fit in a process of its own, seen from the daemon: started, looked at now and then, ended if it takes too long."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import msgspec

from edged.calibration.artefact import MAX_ARTEFACT_BYTES
from edged.calibration.heads import HeadKey

NICE = 19
TIME_LIMIT_S = 600.0
MEMORY_LIMIT_BYTES = 2 * 2**30
"""Of address space, of which the libraries alone take half a gibibyte."""
COMMAND = (sys.executable, "-m", "edged.learning.fit")

_LAST_WORDS_BYTES = 2_000
_MOST_RESULT_BYTES = 2 * MAX_ARTEFACT_BYTES
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to fit: the observations in ``directory`` that were made under ``key``.

    ``progress`` is a ``calibration.learning.Progress``; ``running`` the artefact in use, as its file.
    """

    directory: str
    key: HeadKey
    options: tuple[str, ...]
    max_error: float
    delta: float
    progress: dict[str, int | None]
    running: str | None
    made_at: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: an artefact's file, or why there is none. ``labels`` were looked at.

    ``progress`` is to be stored before anything takes over.
    """

    progress: dict[str, int | None]
    artefact: str | None = None
    why: str = ""
    labels: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The child did not do what it was asked, and why."""

    why: str


class Child:
    """One running fit. ``poll`` gives its result once; nothing here waits."""

    def __init__(
        self,
        order: Order,
        *,
        command: Sequence[str] = COMMAND,
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    ) -> None:
        """Raises: OSError where no process can be started."""
        self._due_s = time.monotonic() + time_limit_s
        self._time_limit_s = time_limit_s
        with contextlib.ExitStack() as undo:
            stdin = undo.enter_context(tempfile.TemporaryFile())
            stdin.write(msgspec.json.encode(order))
            stdin.seek(0)
            self._stdout = undo.enter_context(tempfile.TemporaryFile())
            self._stderr = undo.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [*command, str(memory_limit_bytes), str(int(time_limit_s) + 1)],
                stdin=stdin,
                stdout=self._stdout,
                stderr=self._stderr,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is the daemon's to handle
            )
            stdin.close()
            undo.pop_all()

    def __repr__(self) -> str:
        return f"Child(pid={self.pid}, returncode={self._process.returncode})"

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> Result | Failure | None:
        """None while it runs. Call it no more once it gave something."""
        code = self._process.poll()
        if code is None and time.monotonic() < self._due_s:
            return None
        if code is None:
            self._end()
            return Failure(f"it was ended after {self._time_limit_s:g} s")
        result = self._result() if code == 0 else Failure(self._epitaph(code))
        self._end()
        return result

    def close(self) -> None:
        """End it at once: what it had is lost, and nothing else."""
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._stdout.close()
        self._stderr.close()

    def _result(self) -> Result | Failure:
        try:
            return msgspec.json.decode(_tail(self._stdout, _MOST_RESULT_BYTES), type=Result)
        except msgspec.MsgspecError as exc:
            return Failure(f"it answered something else: {exc}")

    def _epitaph(self, code: int) -> str:
        lines = _tail(self._stderr, _LAST_WORDS_BYTES).decode("utf-8", "replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return f"it {how}: {last[:500]}".rstrip(": ")


def _environment() -> dict[str, str]:
    """No secret of the daemon's, and one thread: it runs beside the model."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    return kept | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _tail(file: IO[bytes], limit_bytes: int) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit_bytes))
    return file.read()
