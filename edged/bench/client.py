"""One streamed answer of any OpenAI-compatible server, with the time of each piece of its text."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from edged.bench.stats import Answer, Piece

_SHOWN_ERROR_CHARACTERS = 200


class BenchError(Exception):
    """The measurement cannot go on; the message says why, for a person."""


@dataclass(frozen=True, slots=True)
class Target:
    """One server: ``url`` ends before ``/v1``. ``model`` empty = the first that it lists."""

    name: str
    url: str
    model: str = ""
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the same bytes for every target but for the model's name."""

    prompt: str
    max_tokens: int
    chat: bool = True
    system: str = ""

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, model: str) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt}]
        text: dict[str, Any] = {"messages": messages} if self.chat else {"prompt": self.prompt}
        options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        return {"model": model, "max_tokens": self.max_tokens} | options | text


@asynccontextmanager
async def open_session(idle_timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """A session without a connection limit; an answer may take for ever, but not be silent for ``idle_timeout_s``."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=idle_timeout_s)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield session


async def first_model(session: aiohttp.ClientSession, target: Target) -> str:
    """The first model a server lists. Raises: BenchError."""
    try:
        async with session.get(f"{target.url}/v1/models", headers=target.headers) as response:
            return str((await response.json(content_type=None))["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as exc:
        raise BenchError(f"{target.name}: {target.url}/v1/models: {type(exc).__name__}: {exc}") from exc


async def ask(session: aiohttp.ClientSession, target: Target, request: Ask) -> Answer:
    """Send one request and read its answer to the end. A failure is an Answer with ``error``, never an exception."""
    stream = _Stream()
    try:
        async with session.post(
            target.url + request.path, json=request.body(target.model), headers=target.headers
        ) as response:
            if response.status != 200:  # noqa: PLR2004 - HTTP
                return Answer(error=f"HTTP {response.status}: {(await response.text())[:_SHOWN_ERROR_CHARACTERS]}")
            async for line in response.content:
                stream.feed(line)
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        return Answer(error=f"{type(exc).__name__}: {exc}")
    return stream.answer()


class _Stream:
    """Reads the lines of one event stream. The clock starts when it is made."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._pieces: list[Piece] = []
        self._usage: dict[str, Any] = {}
        self._error: str | None = None
        self._finished = False

    def feed(self, line: bytes) -> None:
        """Take one line. Raises: ValueError where it is an event that is not JSON."""
        at_s = time.perf_counter() - self._started_s
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self._finished = True
            return
        event = json.loads(data)
        if event.get("error"):
            self._error = json.dumps(event["error"])[:_SHOWN_ERROR_CHARACTERS]
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text:
                self._pieces.append(Piece(at_s, len(text)))
            self._finished = self._finished or bool(choice.get("finish_reason"))

    def answer(self) -> Answer:
        """What was seen; an answer that just stops is an error."""
        tokens = self._usage.get("completion_tokens")
        return Answer(
            pieces=tuple(self._pieces),
            total_s=time.perf_counter() - self._started_s,
            completion_tokens=len(self._pieces) if tokens is None else int(tokens),
            prompt_tokens=self._usage.get("prompt_tokens"),
            counted=tokens is None,
            error=self._error or (None if self._finished else "the stream was cut"),
        )
