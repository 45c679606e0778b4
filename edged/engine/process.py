"""One life of a worker process, seen from the daemon: spawn, talk, watch, kill."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec

from edged.engine.protocol import HEADER, MAX_FRAME_BYTES, Command, Event, Heartbeat, Load, decode_event, encode

_WATCH_S = 0.25
_STDERR_LINES = 20
_STDERR_BYTES = 4096
_LAST_WORDS_S = 1.0
_HINTS = {
    signal.SIGILL: "llama.cpp was built for another CPU: reinstall llama-cpp-python on this machine",
    signal.SIGKILL: "killed from outside, most often because memory ran out",
}
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")
_ENVIRONMENT_PREFIXES = (
    *("LC_", "LD_", "PYTHON", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_"),
    *("LLAMA_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_", "ONEAPI_", "SYCL_", "VK_", "MESA_"),
)


class WorkerProcess:
    """A running worker. ``on_event`` is called on the event loop for every event it sends."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[Event], None],
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._heard_s: float | None = None  # until its first word only the load deadline counts
        self._busy_s = 0.0
        self._killed_because: str | None = None

    def __repr__(self) -> str:
        return f"WorkerProcess(pid={self.pid}, silent_s={self.silent_s:.1f}, busy_s={self._busy_s:.1f})"

    @classmethod
    async def spawn(cls, load: Load, on_event: Callable[[Event], None]) -> "WorkerProcess":
        """Start a worker and tell it to load; its Loaded or LoadFailed arrives as an event."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edged.engine.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=worker_environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is the daemon's to handle
            )
            undo.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer, on_event)
        worker.send(load)
        return worker

    @property
    def silent_s(self) -> float:
        """Seconds since the worker last said anything; 0 before its first word."""
        return 0.0 if self._heard_s is None else time.monotonic() - self._heard_s

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Queue a command; a worker that is gone takes it silently: ``run`` reports its end."""
        if not self._writer.is_closing():
            self._writer.write(encode(command))

    async def run(self, *, silence_s: float, busy_s: float) -> str:
        """Deliver events until the worker ends; returns why it ended, in words.

        A worker that says nothing for ``silence_s`` (stopped, starved) or computes one step or command for longer
        than ``busy_s`` is killed.
        """
        watch = asyncio.create_task(self._watch(silence_s, busy_s))
        stderr = asyncio.create_task(self._collect_stderr())
        try:
            await self._deliver()
        finally:
            self.kill(None)
            watch.cancel()
            code = await self._process.wait()
            await asyncio.wait([stderr], timeout=_LAST_WORDS_S)
            stderr.cancel()
            await asyncio.gather(watch, stderr, return_exceptions=True)
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        return self._epitaph(code)

    def kill(self, because: str | None) -> None:
        """End the process at once, whatever it is doing."""
        self._killed_because = self._killed_because or because
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # Process.kill() may reap it and so lose how it ended

    async def _deliver(self) -> None:
        try:
            while True:
                (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                if size > MAX_FRAME_BYTES:
                    self.kill("it broke the protocol")
                    return
                event = decode_event(await self._reader.readexactly(size))
                self._heard_s = time.monotonic()
                if isinstance(event, Heartbeat):
                    self._busy_s = event.step_s
                self._on_event(event)
        except (asyncio.IncompleteReadError, OSError):
            return
        except msgspec.DecodeError:
            self.kill("it broke the protocol")

    async def _watch(self, silence_s: float, busy_s: float) -> None:
        while True:
            woken_s = time.monotonic()
            await asyncio.sleep(_WATCH_S)
            late_s = time.monotonic() - woken_s - _WATCH_S
            if self._heard_s is not None and late_s > _WATCH_S:
                self._heard_s += late_s  # this side was held up: it could not have heard anything
            if self.silent_s > silence_s:
                self.kill(f"it was silent for {silence_s:g} s")
            elif self._busy_s > busy_s:
                self.kill(f"one step took longer than {busy_s:g} s")

    async def _collect_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = ""
        while part := await self._process.stderr.read(_STDERR_BYTES):
            *lines, rest = (rest[-_STDERR_BYTES:] + part.decode("utf-8", "replace")).split("\n")
            self._stderr += (line.rstrip() for line in lines)
        self._stderr.append(rest.rstrip())

    def _epitaph(self, code: int) -> str:
        if self._killed_because:
            return self._killed_because
        last = next((line for line in reversed(self._stderr) if line), "")
        return epitaph(code, last)


def epitaph(code: int, last_words: str) -> str:
    """Why a process ended, from its return code and its last line on standard error."""
    if code >= 0:
        return f"it exited with status {code}: {last_words}".rstrip(": ")
    died = signal.Signals(-code)
    return f"it died of {died.name}: {_HINTS.get(died, last_words)}".rstrip(": ")


def worker_environment() -> dict[str, str]:
    """What a worker needs of the daemon's environment: a process that parses model files is given no secrets."""
    kept = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    return kept | {"GGML_NO_BACKTRACE": "1"}  # its backtrace starts a debugger
