"""Reading a request's body under limits, and working on large ones beside the event loop."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from edged.errors import BodyTooLarge, InvalidRequest
from edged.server import wire
from edged.server.keys import REQUEST_ID, TENANT

T = TypeVar("T")


async def off_loop(work: Callable[[], T], *, size_bytes: int, inline_bytes: int) -> T:
    """Do the work in a thread where there is more of it than ``inline_bytes``: the event loop is everybody's."""
    return work() if size_bytes <= inline_bytes else await asyncio.to_thread(work)


async def read_parsed(http: web.Request, parse: Callable[..., T], *, timeout_s: float, inline_bytes: int) -> T:
    """The body as ``parse`` makes a request of it: given its JSON, the ``x-edged`` header, id, tenant and receipt.

    Raises: as ``read_body``, ``wire.parse_json`` and ``parse``.
    """
    received_s = time.monotonic()
    body = await read_body(http, timeout_s=timeout_s)
    known = {"header": http.headers.get("x-edged"), "id": http[REQUEST_ID], "tenant": http[TENANT]}

    def parsed() -> T:
        return parse(wire.parse_json(body), received_s=received_s, **known)

    return await off_loop(parsed, size_bytes=len(body), inline_bytes=inline_bytes)


async def read_body(request: web.Request, *, timeout_s: float) -> bytes:
    """The whole body, counted as it comes, chunked or not.

    Raises: BodyTooLarge, InvalidRequest (compressed, or too slow), ConnectionError (the client is gone).
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise _refused(415, "unsupported_encoding", "compressed requests are not accepted", param="Content-Encoding")
    limit_bytes = request.client_max_size
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise _too_large(limit_bytes) from exc
    except TimeoutError as exc:
        raise _refused(408, "request_timeout", f"the request body did not arrive within {timeout_s:g} s") from exc
    except web.RequestPayloadError as exc:
        raise InvalidRequest("the request body broke off or is not correctly chunked", code="invalid_body") from exc


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit_bytes} bytes")


def _refused(status: int, code: str, message: str, *, param: str | None = None) -> InvalidRequest:
    error = InvalidRequest(message, param=param, code=code)
    error.status = status
    return error
