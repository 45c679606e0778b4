"""Reading a request's body under limits."""

import asyncio

from aiohttp import web

from edged.errors import BodyTooLarge, InvalidRequest

READ_TIMEOUT_S = 30.0


async def read_body(request: web.Request) -> bytes:
    """The whole body, counted as it comes, chunked or not.

    Raises: BodyTooLarge, InvalidRequest (compressed, or too slow).
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        error = InvalidRequest(
            "compressed requests are not accepted", param="Content-Encoding", code="unsupported_encoding"
        )
        error.status = 415
        raise error
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        limit = request.client_max_size
        raise BodyTooLarge(f"the request body is larger than the limit of {limit} bytes") from exc
    except TimeoutError as exc:
        error = InvalidRequest(f"the request body did not arrive within {READ_TIMEOUT_S:g} s", code="request_timeout")
        error.status = 408
        raise error from exc
