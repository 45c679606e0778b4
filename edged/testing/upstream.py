"""A scripted OpenAI-compatible or Anthropic provider: a real HTTP server on a loopback port that misbehaves on request.

    async with ScriptedUpstream() as up:
        up.reply(text="hello world", chunk_delay_s=0.05)    # for the next request
        up.reply(status=429, headers={"Retry-After": "2"})  # for the one after
        ...                                                 # every further one is answered by ``up.default``

``up.seen`` is the log: one ``Seen`` per request, with its body, headers and whether the client hung up.
"""

import asyncio
import itertools
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

from edged.config import UpstreamConfig
from edged.testing import anthropic
from edged.testing.sockets import drop

Json = dict[str, Any]
_MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer. Unset, it is a correct stream of ``text``, word by word, or of ``calls``: (name, arguments).

    Timing: ``delay_s`` before the headers, ``first_token_delay_s`` after them, ``chunk_delay_s`` between events;
    ``keep_alives`` comments fill the first-token delay. Faults: ``status`` with ``headers`` and ``error``; ``error``
    alone inside a 200, after ``error_after`` events; ``events`` or a raw ``body`` with ``content_type`` instead of the
    built ones; ``cut_at_byte`` of the body, ``cut`` saying how it ends; ``stall_at_byte``: silence from there;
    ``hang``: not even headers; ``drop``: the connection ends before any; ``ignore_stream``: one JSON document
    whatever was asked. ``slice_bytes``: write in pieces of that size.
    """

    text: str | None = None
    chunks: Sequence[str] | None = None
    calls: Sequence[tuple[str, str]] = ()
    finish: str | None = "stop"
    usage: Mapping[str, Any] | Literal["counted"] | None = "counted"
    done: bool = True
    role_chunk: bool = True
    model: str | None = None
    logprob: float | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    error_after: int = 0
    body: bytes | None = None
    content_type: str | None = None
    events: Sequence[Any] | None = None
    ignore_stream: bool = False
    line_end: str = "\n"
    delay_s: float = 0.0
    first_token_delay_s: float = 0.0
    keep_alives: int = 0
    chunk_delay_s: float = 0.0
    slice_bytes: int | None = None
    cut_at_byte: int | None = None
    cut: Literal["end", "close", "reset"] = "close"
    stall_at_byte: int | None = None
    hang: bool = False
    drop: Literal["close", "reset"] | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Seen:
    """One request as it arrived. ``received_s`` is monotonic; ``sent_bytes`` counts body bytes written so far.

    ``counted`` is the usage of an answer that was begun, whether or not it was told.
    """

    path: str
    headers: Mapping[str, str]
    body: Any
    received_s: float
    connection: tuple[str, int]
    sent_bytes: int = 0
    completed: bool = False
    disconnected: bool = False
    counted: Mapping[str, Any] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def hung_up(self, *, within_s: float = 5.0) -> bool:
        """Wait until the answer ended; True if the client ended it."""
        async with asyncio.timeout(within_s):
            await self.ended.wait()
        return self.disconnected


class ScriptedUpstream:
    """The server. Answers come from ``reply`` in order, then from ``respond``, then from ``default``."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        default: Reply | None = None,
        respond: Callable[[Seen], Reply | None] | None = None,
        models: Sequence[str] = ("scripted-model",),
        keep_log: int = 100_000,
    ) -> None:
        self.default = default or Reply()
        self.respond = respond
        self.models = tuple(models)
        self.seen: deque[Seen] = deque(maxlen=keep_log)
        self._queue: deque[Reply] = deque()
        self._host = host
        self._port = port
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    def __repr__(self) -> str:
        return f"ScriptedUpstream(port={self._port}, seen={len(self.seen)}, queued={len(self._queue)})"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{endpoint:chat/completions|completions|messages}", self._complete)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        """What goes into ``[[upstream]] base_url``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    def config(self, name: str = "cloud", **changes: Any) -> UpstreamConfig:
        """An ``[[upstream]]`` section for this server, a dollar per million tokens in, two out."""
        models = [{"name": m, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0} for m in self.models]
        return UpstreamConfig.model_validate({"name": name, "base_url": self.base_url, "model": models, **changes})

    def reply(self, reply: Reply | None = None, **fields: Any) -> None:
        """Script the answer to the next request that has none yet."""
        self._queue.append(reply or Reply(**fields))

    async def request(self, count: int = 1, *, within_s: float = 5.0) -> Seen:
        """Wait until ``count`` requests have come in all; the last of them."""
        async with asyncio.timeout(within_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.seen) >= count)
            return self.seen[count - 1]

    # -- serving -----------------------------------------------------------------------------------------------------

    async def _models(self, _: web.Request) -> web.Response:
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "scripted"} for name in self.models]
        return web.json_response({"object": "list", "data": rows})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        seen = await self._note(request)
        try:
            return await self._answer(request, seen, self._script(seen))
        except (asyncio.CancelledError, ConnectionError):
            seen.disconnected = True
            raise
        finally:
            seen.ended.set()

    async def _note(self, request: web.Request) -> Seen:
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        seen = Seen(
            path=request.path,
            headers=request.headers,
            body=await request.json(),
            received_s=time.monotonic(),
            connection=tuple(peer[:2]),
        )
        async with self._arrived:
            self.seen.append(seen)
            self._arrived.notify_all()
        return seen

    def _script(self, seen: Seen) -> Reply:
        if self._queue:
            return self._queue.popleft()
        return (self.respond(seen) if self.respond else None) or self.default

    async def _answer(self, request: web.Request, seen: Seen, reply: Reply) -> web.StreamResponse:
        await asyncio.sleep(reply.delay_s)
        if reply.hang:
            await asyncio.Event().wait()
        if reply.drop:
            drop(request.transport, reset=reply.drop == "reset")
            return web.Response()
        streams = bool(seen.body.get("stream")) and not reply.ignore_stream
        pieces = list(_pieces(seen, reply, streams=streams))
        if reply.status < 400 and reply.error is None and reply.body is None and reply.events is None:  # noqa: PLR2004
            seen.counted = _usage(seen, reply)
        kind = reply.content_type or ("text/event-stream" if streams and reply.status < 400 else "application/json")  # noqa: PLR2004
        response = web.StreamResponse(status=reply.status, headers={"Content-Type": kind, **reply.headers})
        await response.prepare(request)
        await self._first_token_delay(response, reply)
        await self._write(request, response, reply, seen, pieces)
        return response

    async def _first_token_delay(self, response: web.StreamResponse, reply: Reply) -> None:
        for _ in range(reply.keep_alives):
            await response.write(b": keep-alive\n\n")
            await asyncio.sleep(reply.first_token_delay_s / reply.keep_alives)
        if not reply.keep_alives:
            await asyncio.sleep(reply.first_token_delay_s)

    async def _write(
        self,
        request: web.Request,
        response: web.StreamResponse,
        reply: Reply,
        seen: Seen,
        pieces: Sequence[bytes],
    ) -> None:
        """Write the body up to its fault."""
        end = min((b for b in (reply.cut_at_byte, reply.stall_at_byte) if b is not None), default=None)
        for place, piece in enumerate(pieces):
            if place:
                await asyncio.sleep(reply.chunk_delay_s)
            room = len(piece) if end is None else max(0, end - seen.sent_bytes)
            for part in _sliced(piece[:room], reply.slice_bytes):
                await response.write(part)
                seen.sent_bytes += len(part)
            if end is not None and seen.sent_bytes >= end:
                break
        if end is not None and end == reply.stall_at_byte:
            await asyncio.Event().wait()
        if end is not None and reply.cut != "end":
            drop(request.transport, reset=reply.cut == "reset")
            return
        await response.write_eof()
        seen.completed = True


# -- bodies ----------------------------------------------------------------------------------------------------------


def _pieces(seen: Seen, reply: Reply, *, streams: bool) -> Iterator[bytes]:
    """The body in the pieces it is written in."""
    if reply.body is not None:
        yield reply.body
    elif seen.path.endswith("/messages") and reply.events is None and reply.status < 400:  # noqa: PLR2004
        yield from anthropic.pieces(_message_script(seen, reply), streams=streams)
    elif reply.status >= 400 or not streams:  # noqa: PLR2004
        is_error = reply.status >= 400 or reply.error is not None  # noqa: PLR2004
        yield json.dumps(_error_body(reply) if is_error else _document(seen, reply)).encode()
    else:
        events = reply.events if reply.events is not None else _events(seen, reply)
        for event in events:
            yield _event_bytes(event, reply.line_end)


def _message_script(seen: Seen, reply: Reply) -> anthropic.Script:
    counted = _usage(seen, reply) if reply.usage is not None else None
    usage = counted and {anthropic.COUNTS.get(name, name): count for name, count in counted.items()}
    model, texts = reply.model or str(seen.body.get("model")), _texts(seen, reply)
    given = {"finish": reply.finish, "error": reply.error, "error_after": reply.error_after}
    return anthropic.Script(model=model, texts=texts, calls=reply.calls, usage=usage, **given)


def _event_bytes(event: Any, line_end: str) -> bytes:
    """An event from JSON or its text; bytes are sent as they are."""
    if isinstance(event, bytes):
        return event
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return f"data: {data}{line_end}{line_end}".encode()


def _error_body(reply: Reply) -> Json:
    return {"error": reply.error or {"message": "scripted failure", "type": "server_error", "code": None}}


def _events(seen: Seen, reply: Reply) -> Iterator[Any]:
    events = _content_events(seen, reply)
    if reply.error is not None:
        yield from itertools.islice(events, reply.error_after)
        yield _error_body(reply)
        return
    yield from events
    if reply.done:
        yield "[DONE]"


def _content_events(seen: Seen, reply: Reply) -> Iterator[Json]:
    """Role, text, finish and usage, for each choice asked for."""
    is_chat = seen.path.endswith("chat/completions")
    head = _head(seen, reply, "chat.completion.chunk" if is_chat else "text_completion")
    choices = range(int(seen.body.get("n") or 1))
    if is_chat and reply.role_chunk:
        for index in choices:
            delta = {"role": "assistant", "content": ""}
            yield {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
    for text, index in itertools.product(_texts(seen, reply), choices):
        yield {**head, "choices": [_choice(text, index, None, is_chat=is_chat, reply=reply)]}
    for delta, index in itertools.product(_call_deltas(reply), choices):
        yield {**head, "choices": [{"index": index, "delta": {"tool_calls": [delta]}, "finish_reason": None}]}
    for index in choices:
        if reply.finish is not None:
            yield {**head, "choices": [_choice("", index, _finish(reply), is_chat=is_chat, reply=reply)]}
    if reply.usage is not None and (seen.body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(seen, reply)}


def _finish(reply: Reply) -> str | None:
    return "tool_calls" if reply.calls and reply.finish == "stop" else reply.finish


def _call_deltas(reply: Reply) -> Iterator[Json]:
    """Each call as OpenAI streams it: id, type and name first, then the arguments in pieces of a few characters."""
    for index, call in enumerate(_calls(reply)):
        function = call["function"]
        yield {"index": index, **call, "function": {**function, "arguments": ""}}
        for piece in re.findall(r"(?s).{1,5}", function["arguments"]):
            yield {"index": index, "function": {"arguments": piece}}


def _calls(reply: Reply) -> list[Json]:
    return [
        {"id": f"call_scripted{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(reply.calls)
    ]


def _head(seen: Seen, reply: Reply, kind: str) -> Json:
    return {"id": "scripted", "object": kind, "created": 0, "model": reply.model or seen.body.get("model")}


def _choice(text: str, index: int, finish: str | None, *, is_chat: bool, reply: Reply) -> Json:
    choice: Json = {"index": index, "finish_reason": finish}
    choice |= {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
    if reply.logprob is not None and text:
        choice["logprobs"] = _logprobs(text, reply.logprob, is_chat=is_chat)
    return choice


def _logprobs(text: str, logprob: float, *, is_chat: bool) -> Json:
    """The piece with its probability and one alternative a nat less likely."""
    if not is_chat:
        return {"tokens": [text], "token_logprobs": [logprob], "top_logprobs": [{text: logprob, "other": logprob - 1}]}
    best = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
    other = {"token": "other", "logprob": logprob - 1, "bytes": list(b"other")}
    return {"content": [{**best, "top_logprobs": [best, other]}]}


def _document(seen: Seen, reply: Reply) -> Json:
    """The whole answer as one JSON document."""
    is_chat = seen.path.endswith("chat/completions")
    text = "".join(_texts(seen, reply))
    message: Json = {"role": "assistant", "content": text or None if reply.calls else text}
    if reply.calls:
        message["tool_calls"] = _calls(reply)
    body: Json = {"message": message} if is_chat else {"text": text}
    choices = [{"index": i, **body, "finish_reason": _finish(reply)} for i in range(int(seen.body.get("n") or 1))]
    head = _head(seen, reply, "chat.completion" if is_chat else "text_completion")
    usage = {} if reply.usage is None else {"usage": _usage(seen, reply)}
    return {**head, "choices": choices, **usage}


def _texts(seen: Seen, reply: Reply) -> Sequence[str]:
    if reply.chunks is not None:
        return reply.chunks
    if reply.calls and reply.text is None:
        return ()
    text = reply.text if reply.text is not None else f"echo: {last_words(seen.body)}"
    return re.findall(r"\s*\S+|\s+$", text)


def _usage(seen: Seen, reply: Reply) -> Json:
    """A count in words, or what the script says."""
    if isinstance(reply.usage, Mapping):
        return dict(reply.usage)
    prompt = len(json.dumps(seen.body.get("messages") or seen.body.get("prompt") or "").split())
    completion = (len(_texts(seen, reply)) + len(list(_call_deltas(reply)))) * int(seen.body.get("n") or 1)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def last_words(body: Mapping[str, Any]) -> str:
    """What was said last: the last message's text, or the prompt."""
    messages = body.get("messages") or [{"content": body.get("prompt")}]
    content = messages[-1].get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(part.get("text", "") for part in parts)


def _sliced(data: bytes, size: int | None) -> Iterator[bytes]:
    step = size or max(1, len(data))
    return (data[i : i + step] for i in range(0, len(data), step))
