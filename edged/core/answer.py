"""What a backend says: tokens, chunks, usage."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from edged.core.request import Request
from edged.core.words import FinishReason


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and what the unmodified distribution said of it.

    ``logprob`` and ``entropy`` are in nats, ``margin`` is the difference of the two largest log-probabilities;
    ``top`` holds the most likely pieces with their log-probabilities, most likely first. ``allowed`` is the probability
    of all tokens that a constraint on the answer left to choose from; None where there was no constraint.
    """

    piece: bytes
    logprob: float
    margin: float | None = None
    entropy: float | None = None
    top: tuple[tuple[bytes, float], ...] = ()
    id: int | None = None
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """News of one function call of a choice. ``index`` counts the choice's calls from 0.

    ``id`` and ``name`` come with the call's first delta only; the ``arguments`` of all of them join to JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one attempt. ``cached`` (read from the provider's cache) and ``cache_write`` (put there) are parts of
    ``prompt``, ``reasoning`` is a part of ``completion``. Of the tokens guessed ahead ``accepted`` ones are part of the
    completion, ``rejected`` ones of no other count."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one request went. ``load_s`` is its wait for a cold load, apart from the engine's own three."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one choice's answer. ``finish`` is set on each choice's last chunk, ``usage`` on the very last one.

    ``tokens`` are those whose text is in ``text`` or ``tool_calls``, or still held back as a possible stop string or as
    the markup of a call. ``dropped_parameters``, on the last chunk, are what the provider was not asked for.
    """

    choice: int = 0
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    cost_uusd: int | None = None
    model: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    dropped_parameters: tuple[str, ...] = ()


class Backend(Protocol):
    """Turns a request into chunks."""

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer's chunks; closing the iterator cancels the work at once.

        Raises: errors.EdgedError.
        """
        ...
