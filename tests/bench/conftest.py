"""A scripted OpenAI-compatible server on a real port."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web


@dataclass
class Scripted:
    """Answers with ``pieces``, each after its pause; ``end`` closes the stream."""

    pieces: tuple[tuple[float, str], ...] = ((0.0, "a"), (0.0, "b"))
    usage: dict[str, int] | None = None
    finish: str | None = "stop"
    status: int = 200
    extra: tuple[bytes, ...] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    running: int = 0
    most_running: int = 0

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if self.status != 200:
            return web.Response(status=self.status, text="no such model")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chat = request.path.endswith("/chat/completions")
        await self.send(response, self.choice({"role": "assistant"} if chat else ""))
        for pause_s, text in self.pieces:
            await asyncio.sleep(pause_s)
            await self.send(response, self.choice({"content": text} if chat else text))
        for raw in self.extra:
            await response.write(raw)
        if self.finish:
            await self.send(response, self.choice({} if chat else "", self.finish))
        if self.usage:
            await self.send(response, {"choices": [], "usage": self.usage})
        if self.finish:
            await response.write(b"data: [DONE]\n\n")
        self.running -= 1
        return response

    @staticmethod
    def choice(content: Any, finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{("text" if isinstance(content, str) else "delta"): content, "finish_reason": finish}]}

    @staticmethod
    async def send(response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())


@asynccontextmanager
async def served(script: Scripted) -> AsyncIterator[Scripted]:
    app = web.Application()
    app.router.add_get("/v1/models", script.models)
    app.router.add_post("/v1/chat/completions", script.complete)
    app.router.add_post("/v1/completions", script.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield script
    finally:
        await runner.cleanup()


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def serving() -> Callable[[Scripted], Any]:
    return served
