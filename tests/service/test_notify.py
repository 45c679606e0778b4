"""The service manager is told the truth, over a real datagram socket."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listening service manager and the value of its NOTIFY_SOCKET."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(5)
    name = f"edged-test-{os.getpid()}"
    listener.bind(str(tmp_path / "notify") if request.param == "path" else "\0" + name)
    yield listener, str(tmp_path / "notify") if request.param == "path" else "@" + name
    listener.close()


def read(listener: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())


def empty(listener: socket.socket) -> None:
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while listener.recv(4096):
            pass


def test_each_state_reaches_the_manager_as_its_own_datagram(manager) -> None:
    """ready, status, watchdog, extend_timeout and stopping send the documented assignments."""
    listener, address = manager
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.extend_timeout(2.5)
        notifier.ready("serving 1 model")
        notifier.watchdog()
        notifier.status("2 running")
        notifier.stopping()
        assert [read(listener) for _ in range(5)] == [
            {"EXTEND_TIMEOUT_USEC": "2500000"},
            {"READY": "1", "STATUS": "serving 1 model"},
            {"WATCHDOG": "1"},
            {"STATUS": "2 running"},
            {"STOPPING": "1"},
        ]


def test_a_reload_carries_the_monotonic_time_it_began(manager) -> None:
    """Type=notify-reload ignores a RELOADING=1 without MONOTONIC_USEC, in microseconds."""
    listener, address = manager
    before_us = time.monotonic_ns() // 1_000
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.reloading()
    message = read(listener)
    assert message["RELOADING"] == "1"
    assert before_us <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1_000


def test_a_status_cannot_smuggle_in_another_assignment(manager) -> None:
    """Line breaks in a status become spaces."""
    listener, address = manager
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.status("loading\nREADY=1\r\n")
    assert read(listener) == {"STATUS": "loading READY=1"}


def test_a_busy_manager_neither_blocks_the_daemon_nor_loses_ready(manager) -> None:
    """With the manager's queue full, READY=1 goes out with the next call and stale pings are dropped."""
    listener, address = manager
    with Notifier({"NOTIFY_SOCKET": address}) as filler, Notifier({"NOTIFY_SOCKET": address}) as notifier:
        for _ in range(2_000):
            filler.watchdog()
        notifier.ready("up")
        notifier.watchdog()
        empty(listener)
        notifier.watchdog()
        assert read(listener) == {"READY": "1", "STATUS": "up", "WATCHDOG": "1"}


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/nonexistent/notify", "@", "/" + "x" * 300])
def test_without_a_manager_every_call_is_a_no_op(address: str) -> None:
    """No socket, an unknown kind of address or a dead one: the daemon runs as on a terminal."""
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    assert not notifier.enabled
    notifier.ready()
    notifier.stopping("done")
    notifier.close()


def test_a_closed_notifier_is_silent(manager) -> None:
    """Calls after close do nothing."""
    _, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.close()
    notifier.ready()
    assert not notifier.enabled


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_ping_interval_is_half_of_what_the_manager_waits(environ: dict[str, str], interval_s: float | None) -> None:
    """A ping is due only from the process that WATCHDOG_PID names, twice per timeout."""
    assert Notifier(environ).watchdog_interval_s == interval_s
