"""The two ends of a proxy's measurement, each a process: a provider that costs nothing, and a relay that only copies.

``python -m edged.bench.loopback upstream PORT`` answers chat completions from prepared bytes;
``python -m edged.bench.loopback relay PORT URL`` sends every request on to URL and every byte back.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

CHUNKS = 10
"""Text events of a streamed answer."""

_TEXT = "The quick brown fox jumps over the lazy dog."
_USAGE = {"prompt_tokens": 20, "completion_tokens": CHUNKS, "total_tokens": 20 + CHUNKS}
_HOP_HEADERS = {"host", "content-length", "transfer-encoding", "connection", "keep-alive"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def upstream() -> web.Application:
    """An OpenAI-compatible provider whose answers are ready before they are asked for."""
    whole, events = _whole(), _events()

    async def chat(request: web.Request) -> web.StreamResponse:
        if b'"stream": true' not in (body := await request.read()) and b'"stream":true' not in body:
            return web.Response(body=whole, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response

    return _application(chat)


def relay(url: str) -> web.Application:
    """Copies requests to ``url`` and answers back, chunk by chunk; judges, counts and logs nothing."""
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        async with sessions[0].post(url + request.path, data=await request.read(), headers=headers) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async def open_session(_: web.Application) -> None:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    async def close_session(_: web.Application) -> None:
        await sessions[0].close()

    application = _application(forward)
    application.on_startup.append(open_session)
    application.on_cleanup.append(close_session)
    return application


def _application(chat: _Handler) -> web.Application:
    async def ready(_: web.Request) -> web.Response:
        return web.Response()

    application = web.Application()
    application.add_routes([web.post("/v1/chat/completions", chat), web.get("/ready", ready)])
    return application


def _whole() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}
    return json.dumps(_envelope("chat.completion", [choice]) | {"usage": _USAGE}).encode()


def _events() -> list[bytes]:
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"{word} "} for word in (_TEXT.split() * CHUNKS)[:CHUNKS]]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    bodies = [_envelope("chat.completion.chunk", [choice]) for choice in choices]
    bodies.append(_envelope("chat.completion.chunk", []) | {"usage": _USAGE})
    return [f"data: {json.dumps(body)}\n\n".encode() for body in bodies] + [b"data: [DONE]\n\n"]


def _envelope(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "bench", "object": kind, "created": 1, "model": "bench", "choices": choices}


def main(argv: list[str]) -> None:
    """Serve until terminated."""
    role, port, *rest = argv
    application = upstream() if role == "upstream" else relay(rest[0])
    uvloop.install()
    web.run_app(application, host="127.0.0.1", port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main(sys.argv[1:])
