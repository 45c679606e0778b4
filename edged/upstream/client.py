"""All network calls: one aiohttp session for every upstream, one attempt per call, no retries.

Deadlines are our own, since aiohttp's default total cuts healthy long answers (F11): connect (name lookup, TCP, TLS),
first token (from the start of the call), idle (between any two reads). A keep-alive comment moves the idle deadline and
is no first token.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from edged import __version__
from edged.config import Secret, UpstreamConfig, resolve_secret
from edged.core import Chunk, Request
from edged.errors import (
    ConfigError,
    ModelNotFound,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from edged.upstream import dns, faults, openai, sse
from edged.upstream.cooldown import Cooldowns, retry_after_s
from edged.upstream.openai_parts import Malformed, as_object, parse_json
from edged.upstream.waits import Waits

_KEEP_ALIVE_S = 30.0
_SETTLE_S = 2.0  # how long a finished answer waits for its usage
_DRAIN_S = 0.2  # how long a finished answer waits for the end that lets its connection be kept
_ERROR_BODY_BYTES = 65_536
_ERROR_BODY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Provider:
    """One upstream, ready to be called."""

    config: UpstreamConfig
    dialect: openai.Dialect
    secret: Secret | None

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if self.secret is not None:
            headers["Authorization"] = f"Bearer {self.secret.reveal()}"
        return headers


class UpstreamClient:
    """Calls providers. ``calls`` counts every attempt that went to the network, those that never connected included."""

    def __init__(
        self,
        upstreams: Sequence[UpstreamConfig],
        *,
        clock: Callable[[], float] = time.monotonic,
        getaddrinfo: dns.Getaddrinfo | None = None,
    ) -> None:
        self._configs = tuple(upstreams)
        self._clock = clock
        stuck_after_s = max((config.connect_timeout_s for config in upstreams), default=1.0)
        seams = {} if getaddrinfo is None else {"getaddrinfo": getaddrinfo}
        self._lookups = dns.Lookups(stuck_after_s=stuck_after_s, clock=clock, **seams)
        self._cooldowns = Cooldowns()
        self._providers: dict[str, _Provider] = {}
        self._session: aiohttp.ClientSession | None = None
        self._waits = Waits()
        self.calls = 0

    def __repr__(self) -> str:
        state = "started" if self._session else "stopped"
        return f"UpstreamClient({state}, upstreams={len(self._configs)}, calls={self.calls})"

    async def start(self) -> None:
        """Resolve the keys and open the session. Raises: ConfigError naming the upstream."""
        self._providers = {config.name: _provider(config) for config in self._configs}
        self._waits = Waits()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(self._lookups),
                use_dns_cache=False,
                limit=0,
                keepalive_timeout=_KEEP_ALIVE_S,
            ),
            headers={"User-Agent": f"edged/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """End every call with an error and close every connection; safe to call twice."""
        session, self._session = self._session, None
        self._waits.close()
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def cooldown_s(self, upstream: str, model: str) -> float:
        """Seconds for which this target asked to be left alone; 0.0 when it may be called."""
        return self._cooldowns.left_s((upstream, model), now_s=self._clock())

    async def stream(self, request: Request, upstream: str, model: str) -> AsyncGenerator[Chunk, None]:
        """Ask once and yield the answer's chunks; the last one carries usage, and cost where the provider names it.

        Closing the iterator (use ``contextlib.aclosing``) closes the connection at once.
        Raises: Unsupported and ClearanceRefused before any call, UpstreamError, ModelNotFound.
        """
        session, provider = self._ready(upstream, model)
        request.clearance.check(provider.config.trust, upstream)
        pinned = request.model == f"{upstream}/{model}"
        call = openai.encode(request, model, pinned=pinned, dialect=provider.dialect)
        first_token_at_s = asyncio.get_running_loop().time() + provider.config.first_token_timeout_s
        response = await self._ask(session, provider, call, first_token_at_s)
        try:
            await self._accept(response, provider, call, model)
            decoder = openai.Decoder(request, upstream=upstream, call=call)
            answer = _Answer(response, decoder, provider.config, self._waits, first_token_at_s)
            while not answer.over:
                for chunk in await answer.read():
                    yield chunk
            await answer.end()
        finally:
            response.close()  # a connection whose answer was read to its end has been given back already

    def _ready(self, upstream: str, model: str) -> tuple[aiohttp.ClientSession, _Provider]:
        if self._session is None:
            raise RuntimeError("the upstream client is not started")
        provider = self._providers.get(upstream)
        if provider is None or all(model != known.name for known in provider.config.models):
            raise ModelNotFound(f'no upstream model is named "{upstream}/{model}"', param="model")
        return self._session, provider

    async def _ask(
        self, session: aiohttp.ClientSession, provider: _Provider, call: openai.Call, first_token_at_s: float
    ) -> aiohttp.ClientResponse:
        """Send the call and wait for the answer's headers."""
        config = provider.config
        self.calls += 1
        failure: UpstreamError
        try:
            async with self._waits.until(first_token_at_s):
                return await session.post(
                    config.base_url.rstrip("/") + call.path,
                    data=call.encode(),
                    headers=provider.headers(),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(connect=config.connect_timeout_s, ceil_threshold=math.inf),
                )
        except aiohttp.ConnectionTimeoutError:
            failure = _timed_out(config, "connect", config.connect_timeout_s)
        except TimeoutError:
            failure = self._waits.why(_timed_out(config, "first_token", config.first_token_timeout_s))
        except (aiohttp.ClientError, OSError) as exc:
            failure = _transport_error(config.name, exc)
        raise failure  # outside the except: a foreign exception may hold our headers, so it is not chained (E07)

    async def _accept(
        self, response: aiohttp.ClientResponse, provider: _Provider, call: openai.Call, model: str
    ) -> None:
        """Let only a successful, uncompressed answer pass."""
        upstream, status = provider.config.name, response.status
        if status >= HTTPStatus.BAD_REQUEST:
            raise await self._refusal(response, (upstream, model), call)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            what = f"answered with a redirect (HTTP {status}), which is never followed"
            raise _protocol_error(upstream, what)
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in {"identity", ""}:
            raise _protocol_error(upstream, "sent a compressed answer, which was not asked for")

    async def _refusal(
        self, response: aiohttp.ClientResponse, target: tuple[str, str], call: openai.Call
    ) -> UpstreamError:
        """The error behind a status of 400 or more; what it says about waiting is remembered."""
        error = await _error_member(response)
        headers = response.headers
        wait_s = retry_after_s(headers, now=datetime.now(UTC))
        failure = faults.from_status(
            target[0], response.status, error=error, sent=call.body.keys(), retry_after_s=wait_s
        )
        if wait_s is not None and isinstance(failure, UpstreamUnavailable):
            self._cooldowns.extend(target, wait_s, now_s=self._clock())
        return failure


class _Answer:
    """One answer being read: bytes under deadlines in, chunks out."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        decoder: openai.Decoder,
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
        self._is_json = _is_json(response.headers, config.name)
        self._body = bytearray()
        self._received_bytes = 0
        self._failure: UpstreamError | None = None
        self._lost: UpstreamError | None = None
        self.over = False

    def __repr__(self) -> str:
        return f"_Answer(bytes={self._received_bytes}, over={self.over}, {self._decoder!r})"

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
            self._failure = _protocol_error(self._config.name, str(exc))
        except UpstreamError as exc:
            self._failure = exc
        return chunks

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
        """The next bytes, b"" at the end, good or bad."""
        try:
            data = await self._next_bytes()
        except UpstreamError as exc:
            self._lost = exc
            return b""
        self._received_bytes += len(data)
        if not self._is_within_cap():
            raise _protocol_error(self._config.name, f"sent more than {self._config.max_response_bytes} bytes")
        return data

    async def _next_bytes(self) -> bytes:
        """One read under the deadline that runs now."""
        deadline, timeout_s, at_s = self._deadline()
        content = self._response.content
        failure: UpstreamError
        try:
            async with self._waits.until(at_s):
                return await content.readany()
        except TimeoutError:
            failure = self._waits.why(_timed_out(self._config, deadline, timeout_s))
        except (aiohttp.ClientError, OSError) as exc:
            # A lost connection makes the public readers raise before they hand out what had already come.
            if data := content._read_nowait(-1):  # noqa: SLF001
                return data
            failure = _transport_error(self._config.name, exc)
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


class _Resolver(AbstractResolver):
    """Our lookups in aiohttp's terms."""

    def __init__(self, lookups: dns.Lookups) -> None:
        self._lookups = lookups

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await self._lookups.addresses(host, port)
        return [
            ResolveResult(hostname=host, host=a.host, port=a.port, family=a.family, proto=0, flags=0)
            for a in found
            if family in {0, a.family}
        ]

    async def close(self) -> None:
        """Nothing to release: lookups end by themselves."""


def _provider(config: UpstreamConfig) -> _Provider:
    if not _may_be_called(config.base_url):
        raise ConfigError(f'upstream "{config.name}": base_url names no host and port that may be called')
    secret = None if config.api_key is None else resolve_secret(config.api_key)
    if secret is not None and not (secret.reveal().isascii() and secret.reveal().isprintable()):
        raise ConfigError(f'upstream "{config.name}": the secret {config.api_key} is no printable ASCII text')
    return _Provider(config, openai.Dialect.of(config.base_url), secret)


def _may_be_called(base_url: str) -> bool:
    parts = urlsplit(base_url)
    try:
        return bool(parts.hostname) and parts.port != 0 and not dns.is_refused(parts.hostname or "")
    except ValueError:
        return False  # a port beyond 65535


def _is_json(headers: Mapping[str, str], upstream: str) -> bool:
    """Whether the body is one JSON document instead of a stream. Raises: UpstreamProtocolError on anything else."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if "html" in kind or "ndjson" in kind:
        raise _protocol_error(upstream, f"answered with {'HTML' if 'html' in kind else 'NDJSON'} instead of a stream")
    return kind.endswith("json")


async def _error_member(response: aiohttp.ClientResponse) -> object:
    """The ``error`` of a refusal's JSON body, if it comes soon, is small and uncompressed."""
    body = bytearray()
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_BODY_S):
            while len(body) < _ERROR_BODY_BYTES and (data := await response.content.readany()):
                body += data
    try:
        return faults.find_error(as_object(parse_json(body.decode("utf-8", "replace")), "the body"))
    except Malformed:
        return None


def _transport_error(upstream: str, exc: Exception) -> UpstreamError:
    """What a failed connection or read means. Only our own words and the system's go into the message."""
    if isinstance(exc, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return _protocol_error(upstream, f"broke HTTP ({type(exc).__name__})")
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        what = f"cannot be reached: {exc.os_error.args[0] if exc.os_error.args else 'name lookup failed'}"
    elif isinstance(exc, aiohttp.ClientSSLError):
        what = f"cannot be reached: TLS failed ({type(exc).__name__})"
    elif isinstance(exc, aiohttp.ClientConnectorError):
        what = f"cannot be reached ({os.strerror(exc.errno) if exc.errno else 'every address failed'})"
    else:
        what = f"cut the connection ({type(exc).__name__})"
    failure = UpstreamUnavailable(f'upstream "{upstream}" {what}', upstream=upstream)
    failure.reached = failure.may_cost = not isinstance(exc, aiohttp.ClientConnectorError)
    return failure


def _timed_out(config: UpstreamConfig, deadline: str, timeout_s: float) -> UpstreamTimeout:
    message = f'upstream "{config.name}" missed its {deadline} deadline ({timeout_s:g} s)'
    failure = UpstreamTimeout(message, upstream=config.name, code=f"{deadline}_timeout")
    failure.reached = failure.may_cost = deadline != "connect"
    return failure


def _protocol_error(upstream: str, what: str) -> UpstreamProtocolError:
    return UpstreamProtocolError(f'upstream "{upstream}" {what}', upstream=upstream)
