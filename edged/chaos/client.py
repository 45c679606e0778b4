"""One request over a plain socket by a client that may leave at any moment, and what it had heard by then."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edged.chaos.plan import Ask

PATIENCE_S = 45.0
_READ_BYTES = 65_536
_SIP_BYTES = 256
_RESET = struct.pack("ii", 1, 0)
_OK = 200


@dataclass(slots=True)
class Heard:
    """What reached a client. ``left``: it hung up itself; ``problem``: why the answer ended without an end."""

    ask: Ask
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    body: bytes = b""
    left: bool = False
    problem: str | None = None
    total_s: float = 0.0

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-edged-request-id")

    @property
    def said(self) -> str:
        """The text and the arguments of the calls of the answer, as far as they came."""
        return "".join(_pieces(self.body, stream=self.ask.stream and self.status == _OK))


async def perform(port: int, ask: Ask, key: str) -> Heard:
    """Ask, read or leave as planned, and report."""
    heard, started_s = Heard(ask), time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_request(ask, key))
                await _listen(reader, heard)
            finally:
                _hang_up(writer, reset=heard.left and ask.reset)
    except TimeoutError:
        heard.problem = f"no end within {PATIENCE_S:g} s"
    except OSError as exc:
        heard.problem = f"{type(exc).__name__}"
    _parse(heard)
    heard.total_s = time.monotonic() - started_s
    return heard


def _request(ask: Ask, key: str) -> bytes:
    body = json.dumps(ask.body()).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _listen(reader: asyncio.StreamReader, heard: Heard) -> None:
    """Read to the end, or until it is time to leave."""
    ask = heard.ask
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ask.leave_after_s):
            while data := await reader.read(_SIP_BYTES if ask.read_pause_s else _READ_BYTES):
                heard.raw += data
                if ask.leave_after_bytes is not None and len(heard.raw) >= ask.leave_after_bytes:
                    break
                await asyncio.sleep(ask.read_pause_s)
            else:
                return
    heard.left = True


def _hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()


def _parse(heard: Heard) -> None:
    """Status, headers and body of what came, be it cut anywhere."""
    head, found, rest = heard.raw.partition(b"\r\n\r\n")
    if not found:
        if heard.raw == b"" and not heard.left:
            heard.problem = heard.problem or "closed without a word"
        return
    first, *lines = head.decode("latin-1").split("\r\n")
    heard.status = int(first.split(" ")[1])
    heard.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    is_chunked = heard.headers.get("transfer-encoding") == "chunked"
    heard.body, is_whole = _dechunked(rest) if is_chunked else (rest, _is_whole(heard, rest))
    if not is_whole and not heard.left:
        heard.problem = heard.problem or "the body was cut"


def _is_whole(heard: Heard, body: bytes) -> bool:
    return len(body) == int(heard.headers.get("content-length", len(body)))


def _dechunked(data: bytes) -> tuple[bytes, bool]:
    """The payload of a chunked body, and whether its last chunk came."""
    body = b""
    while data:
        size, found, data = data.partition(b"\r\n")
        if not found:
            return body, False
        length = int(size, 16)
        if length == 0:
            return body, True
        body += data[:length]
        data = data[length + 2 :]
    return body, False


def _pieces(body: bytes, *, stream: bool) -> Iterator[str]:
    for document in _documents(body, stream=stream):
        for choice in document.get("choices") or ():
            part = choice.get("delta") or choice.get("message") or {}
            yield part.get("content") or ""
            for call in part.get("tool_calls") or ():
                yield call["function"].get("arguments") or ""


def _documents(body: bytes, *, stream: bool) -> Iterator[dict[str, Any]]:
    texts = body.decode("utf-8", "replace").split("\n\n") if stream else [body.decode("utf-8", "replace")]
    for text in texts:
        with contextlib.suppress(ValueError):  # cut off where the client left, a comment, or [DONE]
            document = json.loads(text.removeprefix("data: "))
            if isinstance(document, dict):
                yield document
