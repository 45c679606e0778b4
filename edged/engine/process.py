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

from edged.engine.protocol import HEADER, MAX_FRAME_BYTES, Command, Event, Heartbeat, Load, decode_event, encode

_WATCH_S = 0.25
_STDERR_LINES = 20
_HINTS = {signal.SIGILL: "llama.cpp was built for another CPU: reinstall llama-cpp-python on this machine"}


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
        self._heard_s = time.monotonic()
        self._busy_s = 0.0
        self._killed_because: str | None = None

    def __repr__(self) -> str:
        return f"WorkerProcess(pid={self.pid}, silent_s={self.silent_s:.1f}, busy_s={self._busy_s:.1f})"

    @classmethod
    async def spawn(cls, load: Load, on_event: Callable[[Event], None]) -> "WorkerProcess":
        """Start a worker and tell it to load; its Loaded or LoadFailed arrives as an event."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edged.engine.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # its backtrace starts a debugger
                start_new_session=True,  # a Ctrl-C in the terminal is the daemon's to handle
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer, on_event)
        worker.send(load)
        return worker

    @property
    def silent_s(self) -> float:
        """Seconds since the worker last said anything."""
        return time.monotonic() - self._heard_s

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
        tasks = [asyncio.create_task(self._watch(silence_s, busy_s)), asyncio.create_task(self._collect_stderr())]
        try:
            await self._deliver()
        finally:
            self.kill(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            code = await self._process.wait()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        return self._epitaph(code)

    def kill(self, because: str | None) -> None:
        """End the process at once, whatever it is doing."""
        self._killed_because = self._killed_because or because
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

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

    async def _watch(self, silence_s: float, busy_s: float) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if self.silent_s > silence_s:
                self.kill(f"it was silent for {silence_s:g} s")
            elif self._busy_s > busy_s:
                self.kill(f"one step took longer than {busy_s:g} s")

    async def _collect_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._stderr.append(line.decode("utf-8", "replace").rstrip())

    def _epitaph(self, code: int) -> str:
        if self._killed_because:
            return self._killed_because
        last = next((line for line in reversed(self._stderr) if line), "")
        if code >= 0:
            return f"it exited with status {code}: {last}".rstrip(": ")
        died = signal.Signals(-code)
        return f"it died of {died.name}: {_HINTS.get(died, last)}".rstrip(": ")
