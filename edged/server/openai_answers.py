"""From the chunks of an answer to OpenAI's bodies: whole or streamed, chat or plain completion. Pure: no clock, no I/O.

Bodies carry every field that OpenAI's do, those that say nothing as null; a delta carries, like OpenAI's, only what
changed. ``model`` is the name that served. ``edged`` is the caller's own object, last in the body or the last chunk.
"""

import codecs
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from edged.core import Chunk, FinishReason, Request, Token, ToolCallDelta, Usage
from edged.errors import EngineError
from edged.server.openai_calls import Call, call_delta
from edged.server.wire import encode_json

Json = dict[str, Any]

SSE_DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # OpenAI's word for "all but impossible"; JSON has no infinity


def sse(data: Mapping[str, Any]) -> bytes:
    """One server-sent event; the JSON is ASCII, so no character in it can end a line early."""
    return b"data: " + encode_json(data) + b"\n\n"


def sse_comment(text: str) -> bytes:
    """A line that every parser skips: it keeps an idle connection open."""
    return b": " + " ".join(text.split()).encode("ascii", "replace") + b"\n\n"


def usage_body(usage: Usage | None) -> Json | None:
    """OpenAI's ``usage``; what nobody counts here is null, what there cannot be is 0."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": None,
            "text_tokens": None,
            "audio_tokens": 0,
            "image_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "text_tokens": None,
            "audio_tokens": 0,
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }


# -- what one choice has shown ---------------------------------------------------------------------------------------


class _Shown:
    """A token whose text the client sees, and how many characters of its choice come before it."""

    __slots__ = ("offset", "token")

    def __init__(self, token: Token, offset: int) -> None:
        self.token = token
        self.offset = offset


class _Choice:
    """Keeps back the tokens of text that is still held back: those of a stop string are never shown."""

    def __init__(self) -> None:
        self.opened = False
        self.finish: FinishReason | None = None
        self._waiting: deque[Token] = deque()
        self._text_bytes = 0
        self._token_bytes = 0
        self._characters = 0
        self._calls = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __repr__(self) -> str:
        return f"_Choice(opened={self.opened}, finish={self.finish}, waiting={len(self._waiting)})"

    def take(self, chunk: Chunk) -> list[_Shown]:
        """The tokens whose text has begun to show with this chunk; all that are left where the answer was cut.

        Tokens of function calls, and of what surrounds them, are no content and have no place to be shown.
        """
        self._calls = self._calls or bool(chunk.tool_calls)
        if self._calls:
            self._waiting.clear()
            return []
        self._waiting.extend(chunk.tokens)
        self._text_bytes += len(chunk.text.encode("utf-8", "surrogatepass"))
        is_cut = chunk.finish is FinishReason.LENGTH
        shown = []
        while self._waiting and (is_cut or self._token_bytes < self._text_bytes):
            token = self._waiting.popleft()
            shown.append(_Shown(token, self._characters))
            self._token_bytes += len(token.piece)
            self._characters += len(self._decoder.decode(token.piece))
        return shown


# -- the two formats -------------------------------------------------------------------------------------------------


class _Format(ABC):
    """How one endpoint writes a choice; ``body`` and ``event`` are the fields of its two envelopes."""

    id_prefix: ClassVar[str]
    body: ClassVar[Json]
    event: ClassVar[Json]

    @staticmethod
    @abstractmethod
    def logprobs(shown: Sequence[_Shown], top: int) -> Json: ...

    @staticmethod
    @abstractmethod
    def whole(text: str, calls: Sequence[Call]) -> Json: ...

    @staticmethod
    @abstractmethod
    def opening(*, calls: bool) -> Json | None:
        """What a choice's first event carries before any text, if anything; ``calls``: a call comes first."""

    @staticmethod
    @abstractmethod
    def piece(text: str, calls: Sequence[ToolCallDelta] = ()) -> Json:
        """A piece of a choice; the empty text stands in the event that ends it."""


class _ChatFormat(_Format):
    id_prefix = "chatcmpl-"
    body: ClassVar[Json] = {
        "object": "chat.completion",
        "system_fingerprint": None,
        "service_tier": None,
        "metadata": None,
        "moderation": None,
    }
    event: ClassVar[Json] = {
        "object": "chat.completion.chunk",
        "system_fingerprint": None,
        "service_tier": None,
        "moderation": None,
        "obfuscation": None,
    }

    @staticmethod
    def logprobs(shown: Sequence[_Shown], top: int) -> Json:
        return {"content": [_chat_logprob(item.token, top) for item in shown], "refusal": None}

    @staticmethod
    def whole(text: str, calls: Sequence[Call]) -> Json:
        message: Json = {
            "role": "assistant",
            "content": text or (None if calls else ""),
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [call.body() for call in calls] or None,
        }
        return {"message": message}

    @staticmethod
    def opening(*, calls: bool) -> Json:
        return {"delta": {"role": "assistant", "content": None if calls else "", "refusal": None}}

    @staticmethod
    def piece(text: str, calls: Sequence[ToolCallDelta] = ()) -> Json:
        delta: Json = {"content": text} if text else {}
        return {"delta": {**delta, "tool_calls": [call_delta(call) for call in calls]} if calls else delta}


class _CompletionFormat(_Format):
    id_prefix = "cmpl-"
    body: ClassVar[Json] = {"object": "text_completion", "system_fingerprint": None}
    event = body

    @staticmethod
    def logprobs(shown: Sequence[_Shown], top: int) -> Json:
        return {
            "tokens": [_token_text(item.token.piece) for item in shown],
            "token_logprobs": [_finite(item.token.logprob) for item in shown],
            "top_logprobs": [_top_by_text(item.token, top) for item in shown],
            "text_offset": [item.offset for item in shown],
        }

    @staticmethod
    def whole(text: str, calls: Sequence[Call]) -> Json:  # noqa: ARG004 - plain completions call nothing
        return {"text": text}

    @staticmethod
    def opening(*, calls: bool) -> None:  # noqa: ARG004 - plain completions open with their text
        return None

    @staticmethod
    def piece(text: str, calls: Sequence[ToolCallDelta] = ()) -> Json:  # noqa: ARG004 - likewise
        return {"text": text}


def _chat_logprob(token: Token, top: int) -> Json:
    return {
        **_one_logprob(token.piece, token.logprob),
        "top_logprobs": [_one_logprob(piece, logprob) for piece, logprob in token.top[:top]],
    }


def _one_logprob(piece: bytes, logprob: float) -> Json:
    """``bytes`` is exact where ``token``, a part of a character, can only be a replacement."""
    return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": _finite(logprob)}


def _top_by_text(token: Token, top: int) -> dict[str, float]:
    """The most likely tokens and, as OpenAI promises, the chosen one."""
    likely = {_token_text(piece): _finite(logprob) for piece, logprob in token.top[:top]}
    return {**likely, _token_text(token.piece): _finite(token.logprob)}


def _token_text(piece: bytes) -> str:
    """A part of a character is spelt ``bytes:\\xe2\\x82``, as OpenAI does where there is no ``bytes`` field."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return LEAST_LOGPROB if math.isnan(logprob) else min(max(logprob, LEAST_LOGPROB), 0.0)


def _word(finish: FinishReason | None) -> str | None:
    return None if finish is None else finish.value


# -- whole and streamed ----------------------------------------------------------------------------------------------


class _Answer:
    """What the whole and the streamed form share. ``created`` is Unix time."""

    _format: ClassVar[type[_Format]]

    def __init__(self, request: Request, *, model: str, created: int) -> None:
        self._common: Json = {"id": self._format.id_prefix + request.id, "created": created, "model": model}
        self._top = request.top_logprobs
        self._choices = [_Choice() for _ in range(request.n)]
        self._usage: Usage | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._common['id']}, {self._choices})"

    def _shown(self, choice: _Choice, chunk: Chunk) -> list[_Shown]:
        """Close the choice where the chunk does; nothing is done for log-probabilities that nobody asked for."""
        choice.finish = chunk.finish
        return [] if self._top is None else choice.take(chunk)

    def _logprobs(self, shown: Sequence[_Shown]) -> Json | None:
        return None if self._top is None else self._format.logprobs(shown, self._top)

    def _check_finished(self) -> None:
        for index, choice in enumerate(self._choices):
            if choice.finish is None:
                raise EngineError(f"the answer ended before choice {index} was complete")


class _Whole(_Answer):
    """Collects chunks; the text is what a stream of the same chunks would have joined up to."""

    def __init__(self, request: Request, *, model: str, created: int) -> None:
        super().__init__(request, model=model, created=created)
        self._texts: list[list[str]] = [[] for _ in self._choices]
        self._tokens: list[list[_Shown]] = [[] for _ in self._choices]
        self._calls: list[dict[int, Call]] = [{} for _ in self._choices]

    def feed(self, chunk: Chunk) -> None:
        """Take one chunk; after a choice's finish nothing of it counts but the usage."""
        self._usage = chunk.usage or self._usage
        choice = self._choices[chunk.choice]
        if choice.finish is not None:
            return
        self._tokens[chunk.choice] += self._shown(choice, chunk)
        self._texts[chunk.choice].append(chunk.text)
        for delta in chunk.tool_calls:
            self._calls[chunk.choice].setdefault(delta.index, Call()).add(delta)

    def text(self, choice: int = 0) -> str:
        """The text of one choice so far."""
        return "".join(self._texts[choice])

    def body(self, *, edged: Json | None = None) -> Json:
        """The response body. Raises: EngineError where a choice was never finished."""
        self._check_finished()
        choices = [self._choice(index) for index in range(len(self._choices))]
        body = {**self._common, **self._format.body, "choices": choices, "usage": usage_body(self._usage)}
        return body if edged is None else {**body, "edged": edged}

    def _choice(self, index: int) -> Json:
        return {
            "index": index,
            **self._format.whole(self.text(index), tuple(self._calls[index].values())),
            "logprobs": self._logprobs(self._tokens[index]),
            "finish_reason": _word(self._choices[index].finish),
        }


class _Stream(_Answer):
    """Turns chunks into the events of a stream; the last one is kept back until ``end``, which may add to it."""

    def __init__(self, request: Request, *, model: str, created: int, include_usage: bool = False) -> None:
        super().__init__(request, model=model, created=created)
        self._include_usage = include_usage
        self._last: Json | None = None

    def feed(self, chunk: Chunk) -> list[Json]:
        """The events ready to be sent. Each choice opens once and ends once, in an event of its own without text."""
        self._usage = chunk.usage or self._usage
        choice = self._choices[chunk.choice]
        if choice.finish is not None:
            return []
        shown = self._shown(choice, chunk)
        events = self._open(choice, chunk)
        if chunk.text or shown or chunk.tool_calls:
            piece = self._format.piece(chunk.text, chunk.tool_calls)
            events.append(self._event(chunk.choice, piece, logprobs=self._logprobs(shown)))
        if chunk.finish is None:
            return events
        events = [*self._flush(), *events]
        self._last = self._event(chunk.choice, self._format.piece(""), finish=chunk.finish)
        return events

    def end(self, *, edged: Json | None = None) -> list[Json]:
        """The events that close the stream, ``edged`` in the last one; the usage has an event only where asked for.

        Raises: EngineError where a choice was never finished.
        """
        self._check_finished()
        events = self._flush()
        if self._include_usage:
            events.append(self._envelope([], usage_body(self._usage)))
        if edged is not None:
            events[-1]["edged"] = edged
        return events

    def _open(self, choice: _Choice, chunk: Chunk) -> list[Json]:
        opening = self._format.opening(calls=bool(chunk.tool_calls and not chunk.text))
        if opening is None or choice.opened or not (chunk.text or chunk.tool_calls or chunk.finish):
            return []
        choice.opened = True
        return [self._event(chunk.choice, opening)]

    def _flush(self) -> list[Json]:
        events = [] if self._last is None else [self._last]
        self._last = None
        return events

    def _event(
        self, index: int, piece: Json, *, logprobs: Json | None = None, finish: FinishReason | None = None
    ) -> Json:
        return self._envelope([{"index": index, **piece, "logprobs": logprobs, "finish_reason": _word(finish)}], None)

    def _envelope(self, choices: list[Json], usage: Json | None) -> Json:
        return {**self._common, **self._format.event, "choices": choices, "usage": usage}


class ChatAnswer(_Whole):
    """``chat.completion``"""

    _format = _ChatFormat


class ChatStream(_Stream):
    """``chat.completion.chunk``"""

    _format = _ChatFormat


class CompletionAnswer(_Whole):
    """``text_completion``"""

    _format = _CompletionFormat


class CompletionStream(_Stream):
    """``text_completion``, streamed"""

    _format = _CompletionFormat
