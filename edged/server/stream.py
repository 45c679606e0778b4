"""Server-sent events to a client: keep-alive, write deadline, and an end that clients understand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from edged.server.openai_answers import sse_comment


class ClientTooSlow(ConnectionError, TimeoutError):
    """A reader that takes nothing for too long; its connection is cut."""


class EventStream:
    """One open event stream. A reader that takes nothing for ``write_timeout_s`` counts as gone."""

    def __init__(self, request: web.Request, response: web.StreamResponse, *, write_timeout_s: float) -> None:
        self.response = response
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._written = False

    async def send(self, data: bytes) -> None:
        """Raises: ConnectionError where the client is gone, ClientTooSlow where it does not read."""
        self._written = True
        await self._in_time(self.response.write(data))

    async def end(self) -> None:
        """Finish the body. Raises: as ``send``."""
        await self._in_time(self.response.write_eof())

    async def keep_alive(self, every_s: float) -> None:
        """A comment whenever nothing else was sent for a while (proxies cut idle connections)."""
        while True:
            self._written = False
            await asyncio.sleep(every_s)
            if not self._written:
                await self.send(sse_comment("keep-alive"))

    async def _in_time(self, write: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await write
        except TimeoutError as exc:
            if self._request.transport is not None:
                self._request.transport.abort()  # closing would wait for what nobody reads
            raise ClientTooSlow(f"the client read nothing for {self._write_timeout_s:g} s") from exc


@asynccontextmanager
async def event_stream(
    request: web.Request, headers: Mapping[str, str], *, write_timeout_s: float, comment_s: float
) -> AsyncIterator[EventStream]:
    """An answered request whose body is a stream of events; ended properly when the block ends without an error."""
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the stream back
    await response.prepare(request)
    stream = EventStream(request, response, write_timeout_s=write_timeout_s)
    ticker = asyncio.create_task(stream.keep_alive(comment_s), name="keep-alive")
    try:
        yield stream
        await stream.end()
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])
        if not ticker.cancelled():
            ticker.exception()  # seen: the client was gone, which the stream itself notices too
