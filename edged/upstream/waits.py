"""Waits on the network that end with the client: aiohttp leaves the readers of a session that was closed waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edged.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable


class Waits:
    """Every wait that is open. Once ``closed``, each of them, and each new one, times out at once."""

    def __init__(self) -> None:
        self.closed = False
        self._open: set[asyncio.Timeout] = set()

    def __repr__(self) -> str:
        return f"Waits(open={len(self._open)}, closed={self.closed})"

    @asynccontextmanager
    async def until(self, at_s: float) -> AsyncIterator[None]:
        """Let the block run until ``at_s`` on the loop's clock. Raises: TimeoutError."""
        async with asyncio.timeout_at(0.0 if self.closed else at_s) as wait:
            self._open.add(wait)
            try:
                yield
            finally:
                self._open.discard(wait)

    def why(self, late: UpstreamTimeout) -> UpstreamError:
        """What a wait that ended early is reported as."""
        if not self.closed:
            return late
        return UpstreamUnavailable("the daemon shut down while the upstream answered", upstream=late.upstream)

    def close(self) -> None:
        """End what is waited for."""
        self.closed = True
        now_s = asyncio.get_running_loop().time()
        for wait in self._open:
            if not wait.expired():
                wait.reschedule(now_s)
