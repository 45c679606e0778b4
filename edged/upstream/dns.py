"""Name lookups that may hang without holding anything else up.

``getaddrinfo`` cannot be cancelled and blocks for many seconds on a box whose uplink is dead (F21). So: a daemon thread
of its own per name being looked up (the default executor stays free, and process exit never waits for it), one lookup
per name at a time, a short memory of success, a shorter one of failure, and no waiting on a lookup known to be stuck.
Only probes ask again beside a stuck lookup, so that a resolver that is back is noticed before the old question ends.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

POSITIVE_TTL_S = 30.0
NEGATIVE_TTL_S = 2.0
MAX_THREADS = 8
"""Lookups of one name under way, stuck ones included."""
_CLOUD_METADATA = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}

Getaddrinfo = Callable[..., Sequence[Any]]


class LookupFailed(OSError):
    """The name has no usable address, or nobody says so in time."""


@dataclass(frozen=True, slots=True)
class Address:
    """One socket address of a name."""

    family: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class _Known:
    answer: tuple[Address, ...] | LookupFailed
    until_s: float


@dataclass(slots=True)
class _Pending:
    """A lookup under way. Waiters may come and go; only the thread completes it."""

    since_s: float
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class Lookups:
    """Addresses by name, for one event loop."""

    def __init__(
        self,
        *,
        stuck_after_s: float,
        getaddrinfo: Getaddrinfo = socket.getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stuck_after_s = stuck_after_s
        self._getaddrinfo = getaddrinfo
        self._clock = clock
        self._known: dict[tuple[str, int], _Known] = {}
        self._pending: dict[tuple[str, int], _Pending] = {}
        self._threads: Counter[tuple[str, int]] = Counter()

    def __repr__(self) -> str:
        return f"Lookups(known={len(self._known)}, pending={len(self._pending)})"

    async def addresses(self, host: str, port: int, *, beside_stuck: bool = False) -> tuple[Address, ...]:
        """Where ``host`` is. Cancelling the wait leaves the lookup to the next one who asks.

        ``beside_stuck``: ask anew where the lookup under way is stuck, within MAX_THREADS.

        Raises: LookupFailed; at once where the name failed a moment ago or its lookup is stuck.
        """
        key = (host, port)
        while (known := self._fresh(key)) is None:
            pending = self._pending.get(key) or self._begin(key)
            if self._is_stuck(pending):
                if not beside_stuck or self._threads[key] >= MAX_THREADS:
                    raise LookupFailed("its name lookup is stuck")
                pending = self._begin(key)
            await pending.answered.wait()
        if isinstance(known.answer, LookupFailed):
            raise LookupFailed(*known.answer.args)
        return known.answer

    def _fresh(self, key: tuple[str, int]) -> _Known | None:
        known = self._known.get(key)
        return known if known is not None and known.until_s > self._clock() else None

    def _is_stuck(self, pending: _Pending) -> bool:
        return self._clock() - pending.since_s > self._stuck_after_s

    def _begin(self, key: tuple[str, int]) -> _Pending:
        pending = self._pending[key] = _Pending(self._clock())
        self._threads[key] += 1
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(key, pending, loop), name=f"dns-{key[0]}", daemon=True).start()
        return pending

    def _run(self, key: tuple[str, int], pending: _Pending, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: look up, hand the answer to the loop if it still runs."""
        answer = self._look_up(*key)
        try:
            loop.call_soon_threadsafe(self._finish, key, pending, answer)
        except RuntimeError:
            return

    def _look_up(self, host: str, port: int) -> tuple[Address, ...] | LookupFailed:
        try:
            found = self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            return LookupFailed(f"its name cannot be resolved ({getattr(exc, 'strerror', None) or 'not a host name'})")
        addresses = tuple(Address(family, where[0], where[1]) for family, _, _, _, where in found)
        usable = tuple(address for address in addresses if not is_refused(address.host))
        return usable or LookupFailed("its name resolves to no address that may be called")

    def _finish(self, key: tuple[str, int], pending: _Pending, answer: tuple[Address, ...] | LookupFailed) -> None:
        """A failure that comes late, from a lookup that was stuck, takes no fresh answer away."""
        failed = isinstance(answer, LookupFailed)
        if not failed or self._fresh(key) is None:
            self._known[key] = _Known(answer, self._clock() + (NEGATIVE_TTL_S if failed else POSITIVE_TTL_S))
        self._threads[key] -= 1
        pending.answered.set()
        if self._pending.get(key) is pending:
            del self._pending[key]


def is_refused(host: str) -> bool:
    """Whether an address is link-local or a cloud's metadata service, which no provider is (E08). Names are not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_link_local or address in _CLOUD_METADATA
