"""Whether an upstream can be reached: a connection to its host, TLS included, and nothing asked. Costs nobody money."""

import asyncio
import ssl
from urllib.parse import urlsplit

from edged.config import UpstreamConfig
from edged.upstream.dns import Address, Lookups

MAX_PROBE_S = 2.0
_SHARE = 0.6
"""Of the connect time-out: a probe begun a third into a call's knows before that call gives up."""
_PORTS = {"http": 80, "https": 443}


class Probe:
    """Connects to one upstream's host and hangs up."""

    def __init__(self, config: UpstreamConfig, lookups: Lookups) -> None:
        parts = urlsplit(config.base_url)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._is_tls = parts.scheme == "https"
        self._timeout_s = min(MAX_PROBE_S, config.connect_timeout_s * _SHARE)
        self._lookups = lookups
        self._context: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"Probe({self._host}:{self._port})"

    async def reaches(self) -> bool:
        """Whether one of the host's addresses takes a connection in time; all of them are tried at once."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._is_tls and self._context is None:
                    self._context = await asyncio.to_thread(ssl.create_default_context)
                found = await self._lookups.addresses(self._host, self._port, beside_stuck=True)
                return await self._any(found)
        except (OSError, TimeoutError):
            return False

    async def _any(self, addresses: tuple[Address, ...]) -> bool:
        tries = [asyncio.create_task(self._connects(address)) for address in addresses]
        try:
            for done in asyncio.as_completed(tries):
                if await done:
                    return True
            return False
        finally:
            for attempt in tries:
                attempt.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _connects(self, address: Address) -> bool:
        name = self._host if self._context else None
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(
                asyncio.Protocol, address.host, address.port, ssl=self._context, server_hostname=name
            )
        except OSError:  # ssl.SSLError is one
            return False
        transport.abort()
        return True
