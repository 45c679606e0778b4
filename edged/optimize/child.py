"""The probe process seen from the command: ask, wait, and survive its end."""

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edged.engine import probe_protocol as protocol
from edged.engine.process import epitaph, worker_environment
from edged.errors import EngineError

ANSWER_TIMEOUT_S = 1800.0
_BLOCK_BYTES = 65_536
_LAST_WORDS_BYTES = 4096

Answer = TypeVar("Answer", bound=msgspec.Struct)


class ProbeFailed(EngineError):
    """A probe refused, died or hung: one file's problem, not the command's. ``path`` is the file it had loaded."""

    path: Path | None = None


class Probe:
    """One running probe."""

    def __init__(self, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the probe
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edged.engine.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env=worker_environment(),
            start_new_session=True,  # a Ctrl-C in the terminal is the command's to handle
        )
        self._rest = b""

    def __repr__(self) -> str:
        return f"Probe(pid={self._process.pid}, returncode={self._process.returncode})"

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, command: protocol.Command, expected: type[Answer]) -> Answer:
        """The answer to one command. Raises: ProbeFailed in words."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(protocol.encode(command) + b"\n")
        except OSError as exc:
            raise self._death() from exc
        event: Any = protocol.decode_event(self._line())
        if isinstance(event, protocol.Failed):
            raise ProbeFailed(event.message)
        assert isinstance(event, expected)
        return event

    def close(self) -> None:
        """End the process at once: nothing in it is worth a farewell."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + self._timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                self._process.kill()
                raise ProbeFailed(f"no answer within {self._timeout_s:g} s")
            block = os.read(self._process.stdout.fileno(), _BLOCK_BYTES)
            if not block:
                raise self._death()
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _death(self) -> ProbeFailed:
        code = self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        last_words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ProbeFailed(f"the process that measured it is gone: {epitaph(code, last_words)}")
