"""A name lookup that hangs holds nothing else up."""

import asyncio
import socket
import subprocess
import sys
import threading
import time

import pytest
from upstream_builders import run

from edged.upstream.dns import NEGATIVE_TTL_S, POSITIVE_TTL_S, Address, LookupFailed, Lookups, is_refused

ONE = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Names:
    """A getaddrinfo that answers, fails, or waits for ``go``."""

    def __init__(self, answer=ONE, *, stuck=False):
        self.answer, self.calls, self.go = answer, 0, threading.Event()
        if not stuck:
            self.go.set()

    def __call__(self, host, port, **_):
        self.calls += 1
        self.go.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_one_lookup_serves_everybody_who_asks_meanwhile():
    """Ten waiters, one thread; the answer is remembered for a while and then looked up afresh."""

    async def main():
        names, clock = Names(stuck=True), Clock()
        lookups = Lookups(stuck_after_s=5, getaddrinfo=names, clock=clock)
        waiters = [asyncio.create_task(lookups.addresses("a.example", 443)) for _ in range(10)]
        await asyncio.sleep(0)
        names.go.set()
        assert set(await asyncio.gather(*waiters)) == {(Address(socket.AF_INET, "192.0.2.1", 443),)}
        await lookups.addresses("a.example", 443)
        assert names.calls == 1
        clock.now_s = POSITIVE_TTL_S + 1
        await lookups.addresses("a.example", 443)
        assert names.calls == 2

    run(main)


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        UnicodeError("label too long"),
        OSError("odd"),
    ],
)
def test_a_failure_is_remembered_shortly(failure):
    """NXDOMAIN and "try again" are answered at once for a moment, then asked again."""

    async def main():
        names, clock = Names(failure), Clock()
        lookups = Lookups(stuck_after_s=5, getaddrinfo=names, clock=clock)
        for _ in range(3):
            with pytest.raises(LookupFailed):
                await lookups.addresses("a.example", 443)
        assert names.calls == 1
        clock.now_s = NEGATIVE_TTL_S + 0.1
        names.answer = ONE
        assert await lookups.addresses("a.example", 443)

    run(main)


def test_a_cancelled_wait_leaves_no_later_waiter_stuck():
    """The lookup belongs to nobody: whoever asks next gets its answer (F21)."""

    async def main():
        names = Names(stuck=True)
        lookups = Lookups(stuck_after_s=5, getaddrinfo=names)
        first = asyncio.create_task(lookups.addresses("a.example", 443))
        second = asyncio.create_task(lookups.addresses("a.example", 443))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        names.go.set()
        assert await second
        assert names.calls == 1

    run(main)


def test_nobody_waits_for_a_lookup_known_to_be_stuck():
    """Once a lookup is older than the longest connect deadline, callers fail at once and add no thread."""

    async def main():
        names, clock = Names(stuck=True), Clock()
        lookups = Lookups(stuck_after_s=3, getaddrinfo=names, clock=clock)
        first = asyncio.create_task(lookups.addresses("a.example", 443))
        await asyncio.sleep(0)
        clock.now_s = 3.1
        for _ in range(20):
            with pytest.raises(LookupFailed, match="stuck"):
                await lookups.addresses("a.example", 443)
        assert names.calls == 1
        names.go.set()
        assert await first
        assert await lookups.addresses("a.example", 443)

    run(main)


def test_stuck_lookups_leave_the_default_executor_free():
    """Fifty names that hang delay neither the loop nor work in the default executor (F21)."""

    async def main():
        names = Names(stuck=True)
        lookups = Lookups(stuck_after_s=5, getaddrinfo=names)
        tasks = [asyncio.create_task(lookups.addresses(f"h{i}.example", 443)) for i in range(50)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.to_thread(lambda: None)
        assert time.monotonic() - began < 5
        names.go.set()
        await asyncio.gather(*tasks)
        assert repr(lookups) == "Lookups(known=50, pending=0)"

    run(main)


STUCK_AT_EXIT = """
import asyncio, time
from edged.upstream.dns import Lookups

async def main():
    lookups = Lookups(stuck_after_s=5, getaddrinfo=lambda *_, **__: time.sleep(60))
    asyncio.create_task(lookups.addresses("a.example", 443))
    await asyncio.sleep(0.05)

asyncio.run(main())
"""


def test_a_stuck_lookup_does_not_hold_up_the_end_of_the_process():
    """An executor's threads are joined at exit; these are not (F21)."""
    subprocess.run([sys.executable, "-c", STUCK_AT_EXIT], check=True, timeout=15)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "::ffff:169.254.169.254", "100.100.100.200"]
)
def test_link_local_and_metadata_addresses_are_refused(host):
    """No provider lives there; a name that points there is an attack (E08)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    async def main():
        lookups = Lookups(stuck_after_s=5, getaddrinfo=Names([(family, 1, 6, "", (host, 80))]))
        with pytest.raises(LookupFailed):
            await lookups.addresses("evil.example", 80)

    run(main)
    assert is_refused(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1", "provider.example", "localhost"])
def test_ordinary_addresses_are_not(host):
    """Loopback and private networks hold legitimate providers: vLLM, llama-server, another edged."""
    assert not is_refused(host)
