"""One answer as it is read: bytes under deadlines in, chunks out."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import aiohttp

from edged.config import UpstreamConfig
from edged.core import Chunk
from edged.errors import UpstreamError
from edged.upstream import sse
from edged.upstream.codec import Decoder
from edged.upstream.faults import protocol_error
from edged.upstream.inflate import Inflater, NotInflatable
from edged.upstream.transport import content_encoding, is_json, timed_out, transport_error
from edged.upstream.waits import Waits
from edged.upstream.wire import Malformed, as_object, parse_json

_SETTLE_S = 2.0  # how long a finished answer waits for its usage
_DRAIN_S = 0.2  # how long a finished answer waits for the end that lets its connection be kept
_ERROR_BODY_BYTES = 65_536
_ERROR_BODY_S = 1.0


class Reading:
    """One answer being read: bytes under deadlines in, chunks out."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        decoder: Decoder,
        config: UpstreamConfig,
        waits: Waits,
        first_token_at_s: float,
    ) -> None:
        self._response = response
        self._decoder = decoder
        self._config = config
        self._waits = waits
        self._first_token_at_s = first_token_at_s
        self._parser = sse.Parser(max_event_bytes=min(sse.MAX_EVENT_BYTES, config.max_response_bytes))
        self._is_json = is_json(response.headers, config.name)
        encoding = content_encoding(response.headers, config.name)
        self._inflater = Inflater(encoding, max_bytes=config.max_response_bytes) if encoding else None
        self._body = bytearray()
        self._received_bytes = 0
        self._failure: UpstreamError | None = None
        self._lost: UpstreamError | None = None
        self.over = False

    def __repr__(self) -> str:
        return f"Reading(bytes={self._received_bytes}, over={self.over}, {self._decoder!r})"

    async def read(self) -> list[Chunk]:
        """The chunks of the next bytes. A failure waits until the chunks before it are out. Raises: UpstreamError."""
        if self._failure is not None:
            raise self._failure
        chunks: list[Chunk] = []
        try:
            data = await self._bytes()
            for event in self._events(data):
                chunks += event
            if not data or self._decoder.done:
                chunks += self._close()
                self.over = True
        except sse.EventTooLarge as exc:
            self._failure = protocol_error(self._config.name, str(exc))
        except UpstreamError as exc:
            self._failure = exc
        return joined(chunks)

    async def end(self) -> None:
        """Read up to the end of the body, briefly, so that the connection can serve the next call."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(_DRAIN_S):
                while not self._response.content.at_eof() and self._is_within_cap():
                    self._received_bytes += len(await self._response.content.readany())

    def _events(self, data: bytes) -> Iterator[list[Chunk]]:
        if self._is_json:
            return self._json(data)
        return self._sse(data)

    def _sse(self, data: bytes) -> Iterator[list[Chunk]]:
        for item in self._parser.feed(data) if data else self._parser.close():
            if isinstance(item, sse.Event):
                yield self._decoder.event(item.data, name=item.name, whole=item.whole)

    def _json(self, data: bytes) -> Iterator[list[Chunk]]:
        """A server that ignores ``stream``: the whole body is one event."""
        self._body += data
        if not data and self._lost is None:
            yield self._decoder.body(bytes(self._body))

    def _close(self) -> list[Chunk]:
        """The last chunks. Once the answer is finished, whatever ended it is a good end (F08)."""
        if self._lost is not None and not self._decoder.finished:
            raise self._lost
        return self._decoder.close()

    async def _bytes(self) -> bytes:
        """The next bytes, inflated, b"" at the end, good or bad."""
        while True:
            try:
                data = await self._next_bytes()
            except UpstreamError as exc:
                self._lost = exc
                return b""
            self._received_bytes += len(data)
            if not self._is_within_cap():
                raise protocol_error(self._config.name, f"sent more than {self._config.max_response_bytes} bytes")
            plain = self._plain(data)
            if plain or not data:
                return plain

    def _plain(self, data: bytes) -> bytes:
        if self._inflater is None or not data:
            return data
        try:
            return self._inflater.feed(data)
        except NotInflatable as exc:
            limit = self._config.max_response_bytes
            raise protocol_error(self._config.name, f"sent an answer that {exc} (at most {limit} bytes)") from None

    async def _next_bytes(self) -> bytes:
        """One read under the deadline that runs now."""
        deadline, timeout_s, at_s = self._deadline()
        content = self._response.content
        failure: UpstreamError
        try:
            async with self._waits.until(at_s):
                return await content.readany()
        except TimeoutError:
            failure = self._waits.why(timed_out(self._config, deadline, timeout_s))
        except (aiohttp.ClientError, OSError) as exc:
            # A lost connection makes the public readers raise before they hand out what had already come.
            if data := content._read_nowait(-1):  # noqa: SLF001
                return data
            failure = transport_error(self._config.name, exc)
        raise failure

    def _deadline(self) -> tuple[str, float, float]:
        """Which deadline runs, its length and its end on the loop's clock."""
        now_s = asyncio.get_running_loop().time()
        if self._decoder.finished:
            return "idle", _SETTLE_S, now_s + min(_SETTLE_S, self._config.idle_timeout_s)
        if self._decoder.started or self._body:
            return "idle", self._config.idle_timeout_s, now_s + self._config.idle_timeout_s
        return "first_token", self._config.first_token_timeout_s, self._first_token_at_s

    def _is_within_cap(self) -> bool:
        return self._received_bytes <= self._config.max_response_bytes


def joined(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Neighbouring pieces of one choice as one: what came together goes on together."""
    whole: list[Chunk] = []
    for chunk in chunks:
        last = whole[-1] if whole else None
        if last is None or last.choice != chunk.choice or last.finish or last.usage or last.cost_uusd is not None:
            whole.append(chunk)
            continue
        whole[-1] = replace(
            chunk,
            text=last.text + chunk.text,
            tokens=last.tokens + chunk.tokens,
            tool_calls=last.tool_calls + chunk.tool_calls,
            model=chunk.model or last.model,
            dropped_parameters=last.dropped_parameters + chunk.dropped_parameters,
        )
    return whole


async def error_document(response: aiohttp.ClientResponse) -> Mapping[str, object]:
    """The JSON body of a refusal, if it comes soon, is small and uncompressed; else nothing."""
    body = bytearray()
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_BODY_S):
            while len(body) < _ERROR_BODY_BYTES and (data := await response.content.readany()):
                body += data
    try:
        return as_object(parse_json(body.decode("utf-8", "replace")), "the body")
    except Malformed:
        return {}
