"""OpenAI's API: chat completions, completions, models."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from edged.config import Config
from edged.core import Chunk, Record, Target
from edged.dispatch.answer import Answer, Head
from edged.dispatch.dispatcher import Dispatcher
from edged.engine.host import Engine
from edged.errors import EdgedError, ModelNotFound
from edged.server import openai_answers as answers
from edged.server import wire
from edged.server.body import read_parsed
from edged.server.disconnect import DisconnectWatcher
from edged.server.keys import INTERNAL, TENANT
from edged.server.openai_requests import ParsedRequest, chat_request, completion_request
from edged.server.patience import Patience
from edged.server.stream import EventStream, event_stream

Json = dict[str, Any]
_USD = 1_000_000
_PARSE_ON_LOOP_BYTES = 262_144
"""Larger bodies are parsed in a thread: a tenth of a second on the event loop is felt by every other client."""


class _Whole(Protocol):
    def feed(self, chunk: Chunk) -> None: ...
    def body(self, *, edged: Json | None = None) -> Json: ...


class _Stream(Protocol):
    def feed(self, chunk: Chunk) -> list[Json]: ...
    def end(self, *, edged: Json | None = None) -> list[Json]: ...


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """What differs between the two completion endpoints."""

    parse: Callable[..., ParsedRequest]
    whole: Callable[..., _Whole]
    stream: Callable[..., _Stream]


_CHAT = _Endpoint(chat_request, answers.ChatAnswer, answers.ChatStream)
_COMPLETION = _Endpoint(completion_request, answers.CompletionAnswer, answers.CompletionStream)


class OpenAiApi:
    """The handlers; state lives in the dispatcher."""

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        engines: Mapping[str, Engine],
        watcher: DisconnectWatcher,
        *,
        patience: Patience,
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._engines = engines
        self._watcher = watcher
        self._patience = patience
        self._started = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, _CHAT)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, _COMPLETION)

    async def _answer(self, http: web.Request, endpoint: _Endpoint) -> web.StreamResponse:
        parsed = await read_parsed(
            http, endpoint.parse, timeout_s=self._patience.body_s, inline_bytes=_PARSE_ON_LOOP_BYTES
        )
        with self._watcher.watch(http):
            async with self._dispatcher.answer(parsed.request) as answer:
                if parsed.request.stream:
                    return await self._streamed(http, parsed, answer, endpoint)
                return await _whole(parsed, answer, endpoint)

    async def _streamed(
        self, http: web.Request, parsed: ParsedRequest, answer: Answer, endpoint: _Endpoint
    ) -> web.StreamResponse:
        encoder = endpoint.stream(
            parsed.request, model=answer.head.model, created=int(time.time()), include_usage=parsed.include_usage
        )
        headers, timeout_s = edged_headers(answer.head), self._config.server.write_timeout_s
        async with event_stream(http, headers, write_timeout_s=timeout_s, comment_s=self._patience.comment_s) as stream:
            try:
                await _send_events(stream, encoder, answer)
            except ConnectionError:
                raise
            except EdgedError as exc:
                await _send_failure(stream, exc)
            except Exception:  # our own fault: the client hears that much, the middleware logs it
                await _send_failure(stream, EdgedError(INTERNAL))
                await stream.end()
                raise
            else:
                await stream.send(answers.SSE_DONE)
        return stream.response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self._models(request[TENANT])})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for entry in self._models(request[TENANT]):
            if entry["id"] == name:
                return web.json_response(entry)
        raise ModelNotFound(f"the model {name[:100]!r} does not exist here", param="model")

    def _models(self, tenant: str) -> list[Json]:
        """Routes, local models and upstream models, with their context and state, as far as a key is for them."""
        local = {m.name: self._engines[m.name].context_tokens for m in self._config.models}
        purposes = {m.name: m.purpose for m in self._config.models}
        cloud = {f"{u.name}/{m.name}": m.context_tokens for u in self._config.upstreams for m in u.models}
        entries = []
        for route in self._config.routes:
            contexts = [local[route.local]] if route.local else []
            contexts += [cloud[name] for name in route.cloud]
            state, purpose = self._route_state(route.local, route.cloud), purposes.get(route.local, "chat")
            entries.append(self._entry(route.name, "route", max(contexts), state, purpose))
        entries += [self._entry(name, "local", local[name], self._state(name), purposes[name]) for name in local]
        entries += [self._entry(name, "upstream", tokens, "ready") for name, tokens in cloud.items()]
        key = self._config.key_of(tenant)
        return [entry for entry in entries if not (key and key.routes) or entry["id"] in key.routes]

    def _state(self, model: str) -> str:
        return self._engines[model].state.value

    def _route_state(self, local: str, cloud: tuple[str, ...]) -> str:
        return "ready" if cloud else self._state(local)

    def _entry(self, name: str, kind: str, context_tokens: int, state: str, purpose: str = "chat") -> Json:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "edged",
            "context_length": context_tokens,
            "edged": {"kind": kind, "state": state, "purpose": purpose},
        }


async def _whole(parsed: ParsedRequest, answer: Answer, endpoint: _Endpoint) -> web.Response:
    encoder = endpoint.whole(parsed.request, model=answer.head.model, created=int(time.time()))
    async for chunk in answer.chunks():
        encoder.feed(chunk)
    record = answer.record()
    body = wire.encode_json(encoder.body(edged=edged_object(record)))
    return web.Response(body=body, content_type="application/json", headers=edged_headers(answer.head, record))


async def _send_events(stream: EventStream, encoder: _Stream, answer: Answer) -> None:
    async for chunk in answer.chunks():
        if events := encoder.feed(chunk):
            await stream.send(b"".join(map(answers.sse, events)))
    for event in encoder.end(edged=edged_object(answer.record())):
        await stream.send(answers.sse(event))


async def _send_failure(stream: EventStream, error: EdgedError) -> None:
    """The status line is gone: say it in-band, and end as every stream ends."""
    await stream.send(answers.sse(wire.error_body(error)) + answers.SSE_DONE)


def edged_headers(head: Head, record: Record | None = None) -> dict[str, str]:
    """The ``x-edged-*`` headers; with a record, what it knows better at the end."""
    confidence = head.confidence if record is None else record.confidence
    headers = {
        "x-edged-served-by": head.served_by.value,
        "x-edged-model": head.model,
        "x-edged-reason": (head.reason if record is None else record.reason).value,
    }
    if confidence is not None:
        headers["x-edged-confidence"] = f"{confidence:.4f}"
    if head.offline:
        headers["x-edged-offline"] = "true"
    return headers


def edged_object(record: Record) -> Json:
    """What edged says of an answer inside its body: who, why, how long, what it cost."""
    return {
        "request_id": record.id,
        "served_by": record.served_by.value,
        "model": record.served_model,
        "route": record.route,
        "reason": record.reason.value,
        "confidence": record.confidence,
        "offline": record.offline,
        "locality": record.locality.value,
        "task": record.task,
        "task_source": record.task_source,
        "redacted": dict(record.redacted or ()),
        "cost_usd": record.cost_uusd / _USD,
        "timings": {
            "ttft_s": _rounded(record.ttft_s),
            "total_s": _rounded(record.total_s),
            "predicted_ttft_s": _rounded(record.predicted_ttft_s),
            "prediction_error_s": _rounded(record.prediction_error_s),
            "queue_s": _rounded(record.timings.queue_s),
            "prefill_s": _rounded(record.timings.prefill_s),
            "decode_s": _rounded(record.timings.decode_s),
            "load_s": _rounded(record.timings.load_s),
        },
        "attempts": [
            {
                "target": attempt.target.value,
                "backend": attempt.backend,
                "model": attempt.model,
                "outcome": attempt.outcome.value,
                "error": attempt.error,
                "ttft_s": _rounded(attempt.ttft_s),
                "total_s": _rounded(attempt.total_s),
                "prompt_tokens": attempt.usage.prompt_tokens,
                "cached_tokens": attempt.usage.cached_tokens,
                "completion_tokens": attempt.usage.completion_tokens,
                "cost_usd": attempt.cost_uusd / _USD,
                "cost_estimated": attempt.cost_estimated,
                "dropped_parameters": list(attempt.dropped_parameters),
                "wasted_tokens": attempt.wasted_tokens,
                "saved_tokens": attempt.saved_tokens,
            }
            for attempt in record.attempts
            if attempt.target is not Target.NONE
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
