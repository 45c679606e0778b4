"""Who may talk to the port: API keys, Host and Origin.

A page in the user's browser can reach 127.0.0.1 under a name of its own (DNS rebinding); it cannot fake Host. IP
literals are safe (no name, no rebinding), names have to be known.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from edged.config import Secret, ServerConfig
from edged.errors import HostNotAllowed, NotAllowed

_TENANT_CHARS = 16


class Gate:
    """Decides who may pass. Keys are kept as digests and compared in constant time."""

    def __init__(self, config: ServerConfig, keys: Iterable[Secret], named: Mapping[str, Secret] | None = None) -> None:
        unnamed = {digest: digest[:_TENANT_CHARS] for key in keys for digest in [_digest(key.reveal())]}
        self._tenants = unnamed | {_digest(key.reveal()): name for name, key in (named or {}).items()}
        self._hosts = frozenset({"localhost", *(host.lower() for host in config.allowed_hosts)})
        self._origins = frozenset(origin.rstrip("/").lower() for origin in config.cors_origins)

    def __repr__(self) -> str:
        return f"Gate(keys={len(self._tenants)}, hosts={sorted(self._hosts)})"

    def tenant(self, authorization: str | None, api_key: str | None) -> str:
        """The caller's name: its key's, or one derived from the key; empty without any keys. Raises: NotAllowed."""
        if not self._tenants:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else (api_key or "")
        digest = _digest(offered)
        matches = [tenant for known, tenant in self._tenants.items() if hmac.compare_digest(digest, known)]
        if not offered or not matches:
            raise NotAllowed("this server needs an API key: send 'Authorization: Bearer KEY'")
        return matches[0]

    def check_host(self, host: str | None) -> None:
        """Raises: HostNotAllowed."""
        name = _host_name(host or "")
        if not (name in self._hosts or name.endswith(".localhost") or _is_address(name)):
            raise HostNotAllowed("this Host is not allowed; add it to server.allowed_hosts", param="Host")

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """A browser's page from elsewhere may not use this server unless it is on the list. Raises: HostNotAllowed."""
        if origin is None or self.allows_origin(origin):
            return
        if urlsplit(origin).netloc.lower() != (host or "").lower():
            raise HostNotAllowed("this Origin is not allowed; add it to server.cors_origins", param="Origin")

    def allows_origin(self, origin: str) -> bool:
        return origin.rstrip("/").lower() in self._origins


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _host_name(host: str) -> str:
    """The name or address of a Host header, without port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
