"""Tell the service manager what the daemon is doing: sd_notify(3) and sd_watchdog_enabled(3), without a dependency.

Without ``$NOTIFY_SOCKET`` every call is a no-op, so the daemon calls them unconditionally.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self


class Notifier:
    """Sends state to the service manager and never blocks, so it may be called from the event loop.

    A manager that is busy (its queue full) loses nothing but pings: what could not be sent goes out with the next call.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._socket = _connected(environ.get("NOTIFY_SOCKET", ""))
        self._unsent: dict[str, str] = {}
        self.watchdog_interval_s = _watchdog_interval_s(environ)

    def __repr__(self) -> str:
        return f"Notifier(enabled={self.enabled}, watchdog_interval_s={self.watchdog_interval_s})"

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return self._socket is not None

    def ready(self, text: str | None = None) -> None:
        """Requests can be answered: the end of a start, and of a reload."""
        self._send({"READY": "1"} | _status(text))

    def reloading(self, text: str | None = None) -> None:
        """The config is being read again; ``ready`` must follow. The time stamp is what Type=notify-reload needs."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(now_us)} | _status(text))

    def stopping(self, text: str | None = None) -> None:
        """The daemon drains and ends."""
        self._send({"STOPPING": "1"} | _status(text))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(_status(text))

    def extend_timeout(self, duration_s: float) -> None:
        """Ask for ``duration_s`` more, from now, of start or stop time; repeat while progress is real."""
        self._send({"EXTEND_TIMEOUT_USEC": str(int(duration_s * 1e6))}, keep=False)

    def watchdog(self) -> None:
        """The loop turns and the workers answer; due every ``watchdog_interval_s``."""
        self._send({"WATCHDOG": "1"}, keep=False)

    def close(self) -> None:
        """Release the socket; later calls are no-ops."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, assignments: dict[str, str], *, keep: bool = True) -> None:
        if self._socket is None:
            return
        message = self._unsent | assignments
        try:
            self._socket.send("\n".join(f"{key}={value}" for key, value in message.items()).encode())
        except OSError:
            # The queue is full, or the manager is being re-executed: a daemon goes on serving either way.
            self._unsent = message if keep else self._unsent
        else:
            self._unsent = {}


def _status(text: str | None) -> dict[str, str]:
    """A status is one line: a line break in it would start another assignment."""
    return {} if text is None else {"STATUS": " ".join(text.split())}


def _connected(address: str) -> socket.socket | None:
    """A socket to a path or, with a leading ``@``, to an abstract name; None where there is nothing to talk to."""
    if not address.startswith(("/", "@")):
        return None
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.setblocking(False)
    try:
        notify.connect("\0" + address[1:] if address.startswith("@") else str(Path(address)))
    except OSError:
        notify.close()
        return None
    return notify


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Half of what the manager waits, as sd_watchdog_enabled(3) recommends; None where no ping is expected of us."""
    timeout_us = environ.get("WATCHDOG_USEC", "")
    if not timeout_us.isdecimal() or int(timeout_us) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(timeout_us) / 2e6
