"""``POST /v1/embeddings`` as OpenAI has it, and ``POST /v1/rerank`` as llama-server, Jina and Cohere do."""

import base64
import sys
from array import array
from collections.abc import Callable
from typing import Any

from aiohttp import web

from edged.core.texts import Vectors
from edged.dispatch.answer import Embeddings
from edged.dispatch.dispatcher import Dispatcher
from edged.server import wire
from edged.server.body import off_loop, read_parsed
from edged.server.disconnect import DisconnectWatcher
from edged.server.embedding_requests import ParsedTexts, embeddings_request, rerank_request
from edged.server.openai import edged_headers, edged_object
from edged.server.patience import Patience

Json = dict[str, Any]
_ON_LOOP_BYTES = 65_536
"""Larger bodies and answers are read and written in a thread: the event loop is everybody's."""

Parse = Callable[..., ParsedTexts]
Write = Callable[[ParsedTexts, Embeddings], Json]


class EmbeddingsApi:
    """The handlers; state lives in the dispatcher."""

    def __init__(self, dispatcher: Dispatcher, watcher: DisconnectWatcher, *, patience: Patience) -> None:
        self._dispatcher = dispatcher
        self._watcher = watcher
        self._patience = patience

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/embeddings", self.embeddings),
            web.post("/v1/rerank", self.rerank),
            web.post("/rerank", self.rerank),
        ]

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, embeddings_request, _embeddings_body)

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, rerank_request, _rerank_body)

    async def _answer(self, http: web.Request, parse: Parse, write: Write) -> web.StreamResponse:
        parsed = await read_parsed(http, parse, timeout_s=self._patience.body_s, inline_bytes=_ON_LOOP_BYTES)
        with self._watcher.watch(http):
            async with self._dispatcher.embed(parsed.request) as found:
                written = await off_loop(
                    lambda: wire.encode_json(write(parsed, found)),
                    size_bytes=len(found.vectors.data) + parsed.with_documents * sum(map(len, parsed.request.texts)),
                    inline_bytes=_ON_LOOP_BYTES,
                )
        return web.Response(body=written, content_type="application/json", headers=edged_headers(found.head))


def _embeddings_body(parsed: ParsedTexts, found: Embeddings) -> Json:
    write = _base64 if parsed.base64 else list
    data = [{"object": "embedding", "index": i, "embedding": write(row)} for i, row in enumerate(_rows(found.vectors))]
    return {"object": "list", "data": data, **_common(found)}


def _rerank_body(parsed: ParsedTexts, found: Embeddings) -> Json:
    """The best first; of equals the one that was sent first."""
    scores = [row[0] for row in _rows(found.vectors)]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: parsed.most]
    results: list[Json] = [{"index": i, "relevance_score": scores[i]} for i in best]
    if parsed.with_documents:
        for result in results:
            result["document"] = {"text": parsed.request.texts[result["index"]]}
    return {"id": f"rerank-{found.head.request_id}", "object": "list", "results": results, **_common(found)}


def _common(found: Embeddings) -> Json:
    tokens = found.vectors.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"model": found.head.model, "usage": usage, "edged": edged_object(found.record)}


def _rows(vectors: Vectors) -> list["array[float]"]:
    values = array("f", vectors.data)
    return [values[at : at + vectors.values] for at in range(0, len(values), vectors.values)]


def _base64(row: "array[float]") -> str:
    """32-bit floats in little-endian order, as OpenAI sends them."""
    if sys.byteorder == "big":
        row.byteswap()
    return base64.b64encode(row.tobytes()).decode("ascii")
