"""Notices that a client hung up, by itself: no aiohttp setting has to be right for it (aiohttp#6719)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web


class DisconnectWatcher:
    """Cancels the task that serves a request once its connection is gone, at most ``poll_s`` later."""

    def __init__(self, *, poll_s: float) -> None:
        self._poll_s = poll_s
        self._watched: dict[asyncio.Task[object], web.BaseRequest] = {}
        self._busy = asyncio.Event()

    def __repr__(self) -> str:
        return f"DisconnectWatcher(watched={len(self._watched)})"

    def __len__(self) -> int:
        return len(self._watched)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch for as long as the block runs."""
        task = asyncio.create_task(self._poll(), name="disconnect watcher")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    @contextmanager
    def watch(self, request: web.BaseRequest) -> Iterator[None]:
        """Inside the block the current task is cancelled when the client goes."""
        task = asyncio.current_task()
        assert task is not None
        self._watched[task] = request
        self._busy.set()
        try:
            yield
        finally:
            del self._watched[task]

    async def _poll(self) -> None:
        """Sleeps for good while there is nobody to watch: an idle box is not woken up."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(self._poll_s)
            for task, request in self._watched.items():
                # Once: a second cancellation would cut short what the first one makes the task clean up.
                if _is_gone(request) and not task.cancelling():
                    task.cancel("client gone")
            if not self._watched:
                self._busy.clear()


def _is_gone(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()
