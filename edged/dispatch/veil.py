"""What is sent to an upstream: the request as it came, or with its personal data replaced where its label says so."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from edged.config import Config
from edged.core import Chat, Chunk, Locality, Request
from edged.errors import ConfigError, Unsupported
from edged.privacy.detect import Detector
from edged.privacy.restore import AnswerRestorer
from edged.privacy.rewrite import Redacted, redact

_INLINE_CHARS = 500
"""Longer texts are searched in a thread: a phone number takes milliseconds to tell from other digits."""


class Veil:
    """Redacts a request once, however many upstreams are asked. Finds what ``[redact]`` names."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._detector: Detector | None = None

    def __repr__(self) -> str:
        return f"Veil({self._detector})"

    def check(self) -> None:
        """Have all that redaction needs, where the config asks for it anywhere. Raises: ConfigError."""
        if is_asked_for(self._config):
            self._detector = Detector(self._config.redact)

    def is_needed(self, request: Request, name: str) -> bool:
        """Whether the upstream of ``name`` (UPSTREAM/model) may not see the request as it is."""
        return request.clearance.needs_redaction(self._config.trust_of(name))

    async def over(self, request: Request) -> Redacted:
        """The request that may be sent. Raises: Unsupported where it cannot be looked through."""
        if _size_chars(request) <= _INLINE_CHARS and self._detector is not None:
            return self._redact(request)
        return await asyncio.to_thread(self._redact, request)

    def _redact(self, request: Request) -> Redacted:
        try:
            detector = self._detector = self._detector or Detector(self._config.redact)
        except ConfigError:
            text = 'edged.locality: this server cannot redact; its operator has to install "edged[redact]"'
            raise Unsupported(text, param="edged.locality") from None
        return redact(request, detector, max_chars=self._config.redact.max_chars)


async def restored(stream: AsyncGenerator[Chunk, None], redacted: Redacted) -> AsyncGenerator[Chunk, None]:
    """The answer with the values in place of their placeholders; closing it closes ``stream``."""
    restorer = AnswerRestorer(redacted.vault, redacted.request)
    async with aclosing(stream):
        async for chunk in stream:
            yield restorer.feed(chunk)
    for chunk in restorer.flush():
        yield chunk


def is_asked_for(config: Config) -> bool:
    """Whether a route or an API key redacts, or ``[redact]`` has been written."""
    labels = [*(route.locality for route in config.routes), *(key.locality for key in config.api_keys)]
    return Locality.REDACT in labels or "redact" in config.model_fields_set


def _size_chars(request: Request) -> int:
    """About how much there is to look through; tools and schemas are counted as much."""
    if request.tools or not isinstance(request.input, Chat):
        return _INLINE_CHARS + 1
    return sum(len(message.text or "") for message in request.input.messages)
