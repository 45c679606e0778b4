"""All network calls: one aiohttp session for every upstream, one attempt per call, no retries.

Deadlines are our own, since aiohttp's default total cuts healthy long answers (F11): connect (name lookup, TCP, TLS),
first token (from the start of the call), idle (between any two reads). A keep-alive comment moves the idle deadline and
is no first token.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from edged.config import Secret, UpstreamConfig, UpstreamModelConfig, resolve_secret
from edged.core import Chunk, Request
from edged.errors import (
    ConfigError,
    ModelNotFound,
    ParameterRefused,
    UpstreamError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from edged.upstream import capabilities, dns, faults
from edged.upstream.anthropic import AnthropicCodec
from edged.upstream.codec import Call, Codec
from edged.upstream.cooldown import Cooldowns, retry_after_s
from edged.upstream.faults import protocol_error
from edged.upstream.openai import OpenAICodec
from edged.upstream.reach import Probe
from edged.upstream.reading import Reading, error_document
from edged.upstream.refusals import Refusals, refused_parameter
from edged.upstream.transport import connect_timeout, open_session, timed_out, transport_error
from edged.upstream.waits import Waits

log = logging.getLogger(__name__)

_CODECS: Mapping[str, Callable[[UpstreamConfig], Codec]] = {"openai": OpenAICodec, "anthropic": AnthropicCodec}


@dataclass(frozen=True, slots=True)
class _Provider:
    """One upstream, ready to be called."""

    config: UpstreamConfig
    codec: Codec
    secret: Secret | None

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        return headers | self.codec.headers(self.secret)

    def model(self, name: str) -> UpstreamModelConfig | None:
        return next((model for model in self.config.models if model.name == name), None)


@dataclass(frozen=True, slots=True)
class _Asking:
    """One call, ready to be made."""

    provider: _Provider
    model: str
    call: Call
    pinned: bool
    first_token_at_s: float

    @property
    def target(self) -> tuple[str, str]:
        return self.provider.config.name, self.model


class UpstreamClient:
    """Calls providers. ``calls`` counts every attempt that went to the network, those that never connected included.

    ``refusals`` holds the parameters that targets refused and that are left out since.
    """

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
        self._probes: dict[str, Probe] = {}
        self._session: aiohttp.ClientSession | None = None
        self._waits = Waits()
        self.refusals = Refusals()
        self.calls = 0

    def __repr__(self) -> str:
        state = "started" if self._session else "stopped"
        return f"UpstreamClient({state}, upstreams={len(self._configs)}, calls={self.calls})"

    async def start(self) -> None:
        """Resolve the keys and open the session. Raises: ConfigError naming the upstream."""
        self._providers = {config.name: _provider(config) for config in self._configs}
        self._probes = {config.name: Probe(config, self._lookups) for config in self._configs}
        self._waits = Waits()
        longest_s = max((config.connect_timeout_s for config in self._configs), default=0.0)
        self._session = open_session(self._lookups, connect_timeout_s=longest_s)

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

    @property
    def upstreams(self) -> tuple[UpstreamConfig, ...]:
        return self._configs

    async def reaches(self, upstream: str) -> bool:
        """Whether its host takes a connection now; nothing is asked, nothing is paid."""
        return await self._probes[upstream].reaches()

    def cooldown_s(self, upstream: str, model: str) -> float:
        """Seconds for which this target asked to be left alone; 0.0 when it may be called."""
        return self._cooldowns.left_s((upstream, model), now_s=self._clock())

    async def stream(self, request: Request, upstream: str, model: str) -> AsyncGenerator[Chunk, None]:
        """Ask once and yield the answer's chunks; the last one carries usage, and cost where the provider names it.

        Closing the iterator (use ``contextlib.aclosing``) closes the connection at once.
        Raises: Unsupported and ClearanceRefused before any call, UpstreamError, ModelNotFound.
        """
        session, asking = self._ready(request, upstream, model)
        provider, call = asking.provider, asking.call
        response = await self._ask(session, asking)
        try:
            await self._accept(response, asking)
            decoder = provider.codec.decoder(request, call)
            answer = Reading(response, decoder, provider.config, self._waits, asking.first_token_at_s)
            while not answer.over:
                for chunk in await answer.read():
                    is_last = chunk.usage is not None
                    yield replace(chunk, dropped_parameters=call.dropped) if is_last and call.dropped else chunk
            await answer.end()
        finally:
            response.close()  # a connection whose answer was read to its end has been given back already

    def _ready(self, request: Request, upstream: str, model: str) -> tuple[aiohttp.ClientSession, _Asking]:
        """The call, with everything checked that can be checked before anything leaves the box."""
        if self._session is None:
            raise RuntimeError("the upstream client is not started")
        provider = self._providers.get(upstream)
        known = provider.model(model) if provider else None
        if provider is None or known is None:
            raise ModelNotFound(f'no upstream model is named "{upstream}/{model}"', param="model")
        request.clearance.check(provider.config.trust, upstream)
        capabilities.check(request, provider.config, known)
        pinned = request.model == f"{upstream}/{model}"
        call = provider.codec.encode(request, known, pinned=pinned)
        call = self.refusals.fit(call, (upstream, model), pinned=pinned)
        first_token_at_s = asyncio.get_running_loop().time() + provider.config.first_token_timeout_s
        return self._session, _Asking(provider, model, call, pinned, first_token_at_s)

    async def _ask(self, session: aiohttp.ClientSession, asking: _Asking) -> aiohttp.ClientResponse:
        """Send the call and wait for the answer's headers."""
        config = asking.provider.config
        self.calls += 1
        failure: UpstreamError
        try:
            async with self._waits.until(asking.first_token_at_s):
                return await session.post(
                    config.base_url.rstrip("/") + asking.call.path,
                    data=asking.call.encode(),
                    headers=asking.provider.headers(),
                    allow_redirects=False,
                    timeout=connect_timeout(config.connect_timeout_s),
                )
        except aiohttp.ConnectionTimeoutError:
            failure = timed_out(config, "connect", config.connect_timeout_s)
        except TimeoutError:
            failure = self._waits.why(timed_out(config, "first_token", config.first_token_timeout_s))
        except (aiohttp.ClientError, OSError) as exc:
            failure = transport_error(config.name, exc)
        raise failure  # outside the except: a foreign exception may hold our headers, so it is not chained (E07)

    async def _accept(self, response: aiohttp.ClientResponse, asking: _Asking) -> None:
        """Let only a successful answer pass."""
        upstream, status = asking.provider.config.name, response.status
        if status >= HTTPStatus.BAD_REQUEST:
            raise await self._refusal(response, asking)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            what = f"answered with a redirect (HTTP {status}), which is never followed"
            raise protocol_error(upstream, what)

    async def _refusal(self, response: aiohttp.ClientResponse, asking: _Asking) -> UpstreamError:
        """The error behind a status of 400 or more; what it says about waiting and parameters is remembered."""
        document = await error_document(response)
        wait_s = retry_after_s(response.headers, now=datetime.now(UTC))
        failure = faults.from_status(
            asking.target[0],
            response.status,
            error=faults.find_error(document),
            sent=asking.call.body.keys(),
            retry_after_s=wait_s,
        )
        if wait_s is not None and isinstance(failure, UpstreamUnavailable):
            self._cooldowns.extend(asking.target, wait_s, now_s=self._clock())
        if isinstance(failure, UpstreamRejected):
            return self._without_refused(
                asking, failure, refused_parameter(response.status, document, asking.call.body)
            )
        return failure

    def _without_refused(self, asking: _Asking, failure: UpstreamRejected, name: str | None) -> UpstreamRejected:
        """Learn that ``name`` is refused; the error says whether asking again without it makes sense."""
        if name is None:
            return failure
        is_new = self.refusals.learn(asking.target, name)
        if self.refusals.fit(asking.call, asking.target, pinned=asking.pinned) is asking.call:
            return failure
        upstream, model = asking.target
        if is_new:
            log.warning('upstream "%s": the model "%s" refuses the parameter "%s": left out', upstream, model, name)
        return ParameterRefused(f'upstream "{upstream}" refuses the parameter {name}', upstream=upstream, param=name)


def _provider(config: UpstreamConfig) -> _Provider:
    if not _may_be_called(config.base_url):
        raise ConfigError(f'upstream "{config.name}": base_url names no host and port that may be called')
    secret = None if config.api_key is None else resolve_secret(config.api_key)
    if secret is not None and not (secret.reveal().isascii() and secret.reveal().isprintable()):
        raise ConfigError(f'upstream "{config.name}": the secret {config.api_key} is no printable ASCII text')
    return _Provider(config, _CODECS[config.kind](config), secret)


def _may_be_called(base_url: str) -> bool:
    parts = urlsplit(base_url)
    try:
        return bool(parts.hostname) and parts.port != 0 and not dns.is_refused(parts.hostname or "")
    except ValueError:
        return False  # a port beyond 65535
