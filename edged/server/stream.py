"""Server-sent events to a client: keep-alive, write deadline, and an end that clients understand."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from edged.server.openai_answers import sse_comment

KEEP_ALIVE_S = 10.0


class EventStream:
    """One open event stream. A reader that takes nothing for ``write_timeout_s`` counts as gone."""

    def __init__(self, response: web.StreamResponse, *, write_timeout_s: float) -> None:
        self.response = response
        self._write_timeout_s = write_timeout_s
        self._written = False

    async def send(self, data: bytes) -> None:
        """Raises: ConnectionError where the client is gone or does not read."""
        self._written = True
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self.response.write(data)
        except TimeoutError as exc:
            raise ConnectionError("the client does not read its stream") from exc

    async def keep_alive(self) -> None:
        """A comment whenever nothing else was sent for a while (proxies cut idle connections)."""
        while True:
            self._written = False
            await asyncio.sleep(KEEP_ALIVE_S)
            if not self._written:
                await self.send(sse_comment("keep-alive"))


@asynccontextmanager
async def event_stream(
    request: web.Request, headers: Mapping[str, str], *, write_timeout_s: float
) -> AsyncIterator[EventStream]:
    """An answered request whose body is a stream of events; ended properly when the block ends without an error."""
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the stream back
    await response.prepare(request)
    stream = EventStream(response, write_timeout_s=write_timeout_s)
    ticker = asyncio.create_task(stream.keep_alive(), name="keep-alive")
    try:
        yield stream
        await response.write_eof()
    finally:
        ticker.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await ticker
