"""What the client needs of a provider's API: a call made from a request, chunks read from its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edged.config import Secret, UpstreamModelConfig
from edged.core import Chunk, Request


@dataclass(frozen=True, slots=True)
class Call:
    """One POST: the path below the base URL and the JSON body; ``dropped``: what of the request is not in it."""

    path: str
    body: Mapping[str, object]
    dropped: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The body in ASCII-only JSON, so that no odd character can break it on the way (C11)."""
        return json.dumps(self.body, separators=(",", ":"), allow_nan=False).encode("ascii")


class Decoder(Protocol):
    """One answer: events or a whole body in, chunks out, then ``close`` for what ends it.

    ``started``: a first token came; ``finished``: only usage may still come; ``done``: nothing more will.
    Raises: UpstreamError, whose message repeats nothing that the provider wrote.
    """

    started: bool
    done: bool

    @property
    def finished(self) -> bool: ...

    def event(self, data: str, *, name: str = "message", whole: bool = True) -> list[Chunk]:
        """The chunks of one event's data; a part of an event (``whole=False``) that is no JSON counts as not sent."""
        ...

    def body(self, data: bytes) -> list[Chunk]:
        """The chunks of a plain JSON answer, from a server that ignores ``stream``."""
        ...

    def close(self) -> list[Chunk]:
        """The last chunks: finish reasons, with usage on the very last."""
        ...


class Codec(Protocol):
    """One provider's API. Pure."""

    def headers(self, secret: Secret | None) -> dict[str, str]:
        """The headers that are this API's own, the credential's among them."""
        ...

    def encode(self, request: Request, model: UpstreamModelConfig, *, pinned: bool) -> Call:
        """The call that asks ``model``; ``pinned``: the client named this very model.

        Raises: Unsupported where the request's meaning would not survive, before anything is spent.
        """
        ...

    def decoder(self, request: Request, call: Call) -> Decoder:
        """A reader for the answer to ``call``."""
        ...
