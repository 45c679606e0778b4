"""aiohttp in our terms: one session for every upstream, and what its failures mean."""

import math
import os
import socket
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from edged import __version__
from edged.config import UpstreamConfig
from edged.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from edged.upstream import dns
from edged.upstream.faults import protocol_error
from edged.upstream.inflate import Inflater

_KEEP_ALIVE_S = 30.0
_DEAD_AFTER_S = 5.0
_PING_AFTER_S = 10


def open_session(lookups: dns.Lookups, *, connect_timeout_s: float = 0.0) -> aiohttp.ClientSession:
    """A session without a proxy, cookies, or aiohttp's own limits, DNS cache and decompression.

    ``connect_timeout_s`` is the longest that any upstream may take to connect.
    """
    dead_after_s = max(_DEAD_AFTER_S, connect_timeout_s)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=_Resolver(lookups),
            use_dns_cache=False,
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_S,
            socket_factory=lambda info: _mortal_socket(info, dead_after_s),
        ),
        headers={"User-Agent": f"edged/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


def _mortal_socket(info: aiohttp.AddrInfoType, dead_after_s: float) -> socket.socket:
    """A socket that dies with its path: a kept connection outlives a pulled cable, and would swallow the next call.

    What was sent and is acknowledged by nobody for so long ends it (RFC 5482); silence is checked by TCP's own pings.
    """
    sock = socket.socket(family=info[0], type=info[1], proto=info[2])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _MORTALITY:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after_s * 1000))
    return sock


_MORTALITY = [
    (getattr(socket, option), value)
    for option, value in (("TCP_KEEPIDLE", _PING_AFTER_S), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
    if hasattr(socket, option)
]


def connect_timeout(timeout_s: float) -> aiohttp.ClientTimeout:
    """A limit on connecting alone: every other deadline is our own."""
    return aiohttp.ClientTimeout(connect=timeout_s, ceil_threshold=math.inf)


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


def is_json(headers: Mapping[str, str], upstream: str) -> bool:
    """Whether the body is one JSON document instead of a stream. Raises: UpstreamProtocolError on anything else."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if "html" in kind or "ndjson" in kind:
        raise protocol_error(upstream, f"answered with {'HTML' if 'html' in kind else 'NDJSON'} instead of a stream")
    return kind.endswith("json")


def content_encoding(headers: Mapping[str, str], upstream: str) -> str | None:
    """How the body is compressed, None where it is not. Raises: UpstreamProtocolError where we cannot inflate it."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if not Inflater.knows(encoding):
        raise protocol_error(upstream, "sent an answer in a compression that was not asked for")
    return encoding


def transport_error(upstream: str, exc: Exception) -> UpstreamError:
    """What a failed connection or read means. Only our own words and the system's go into the message."""
    if isinstance(exc, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return protocol_error(upstream, f"broke HTTP ({type(exc).__name__})")
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


def timed_out(config: UpstreamConfig, deadline: str, timeout_s: float) -> UpstreamTimeout:
    message = f'upstream "{config.name}" missed its {deadline} deadline ({timeout_s:g} s)'
    failure = UpstreamTimeout(message, upstream=config.name, code=f"{deadline}_timeout")
    failure.reached = failure.may_cost = deadline != "connect"
    return failure
