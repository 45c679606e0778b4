"""A client that costs next to nothing: prepared bytes over a kept connection, answers recognised by their last bytes.

For measuring proxies, whose own work is a fraction of what a full HTTP client would add on the same cores.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edged.bench.client import BenchError, Target

_LAST_CHUNK = b"\r\n0\r\n\r\n"
_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Burst:
    """What a number of clients saw: seconds per answer, and how many were not whole or not 200."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s if self.wall_s else 0.0


async def burst(target: Target, *, clients: int, seconds: float, stream: bool) -> Burst:
    """Closed-loop load: every client sends its next request when it has its answer. Raises: BenchError."""
    seen, end_s = Burst(), time.perf_counter() + seconds
    started_s = time.perf_counter()
    await asyncio.gather(*(_client(target, seen, end_s, stream=stream) for _ in range(clients)))
    seen.wall_s = time.perf_counter() - started_s
    return seen


async def _client(target: Target, seen: Burst, end_s: float, *, stream: bool) -> None:
    address = urlsplit(target.url)
    data = _request(target, address.netloc, stream=stream)
    loop = asyncio.get_running_loop()
    try:
        transport, connection = await loop.create_connection(_Connection, address.hostname or "", address.port or 80)
    except OSError as exc:
        raise BenchError(f"{target.name}: {target.url}: {exc}") from exc
    try:
        while (sent_s := time.perf_counter()) < end_s:
            done = connection.expect()
            transport.write(data)
            async with asyncio.timeout(_TIMEOUT_S):
                whole = await done
            seen.failed += not whole
            seen.latencies_s.append(time.perf_counter() - sent_s)
    except (OSError, TimeoutError) as exc:
        raise BenchError(f"{target.name}: {type(exc).__name__}: {exc}") from exc
    finally:
        transport.close()


def _request(target: Target, host: str, *, stream: bool) -> bytes:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does the fox do?"}]
    body = json.dumps({"model": target.model, "messages": messages, "max_tokens": 32, "stream": stream}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time; ``expect`` gives a future of whether the answer was a whole 200."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._length: int | None = None
        self._done: asyncio.Future[bool] | None = None

    def expect(self) -> asyncio.Future[bool]:
        self._data.clear()
        self._length = None
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._done is not None and not self._done.done() and self._is_whole():
            self._done.set_result(self._data.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def _is_whole(self) -> bool:
        if self._length is None:
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return False
            self._length = _body_end(bytes(self._data[:head]).lower(), head + 4)
        return len(self._data) >= self._length if self._length else self._data.endswith(_LAST_CHUNK)


def _body_end(head: bytes, start: int) -> int:
    """Where the body ends; 0 where it comes in chunks."""
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return start + int(line[15:])
    return 0
