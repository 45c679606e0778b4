"""Notices that a client hung up, by itself: no aiohttp setting has to be right for it (aiohttp#6719)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from aiohttp import web

_POLL_S = 0.1


class DisconnectWatcher:
    """Cancels the task that serves a request once its connection is gone, within a tenth of a second."""

    def __init__(self) -> None:
        self._watched: dict[asyncio.Task[object], web.BaseRequest] = {}

    def __repr__(self) -> str:
        return f"DisconnectWatcher(watched={len(self._watched)})"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch for as long as the block runs."""
        task = asyncio.create_task(self._poll(), name="disconnect watcher")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def watch(self, request: web.BaseRequest) -> Iterator[None]:
        """Inside the block the current task is cancelled when the client goes."""
        task = asyncio.current_task()
        assert task is not None
        self._watched[task] = request
        try:
            yield
        finally:
            del self._watched[task]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            gone = [task for task, request in self._watched.items() if _is_gone(request)]
            for task in gone:
                task.cancel("client gone")


def _is_gone(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()
