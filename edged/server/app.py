"""The aiohttp application: who may pass, what errors look like, and the APIs behind it."""

import logging
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from edged.config import Config, Secret, ServerConfig
from edged.dispatch.dispatcher import Dispatcher
from edged.engine.host import Engine
from edged.errors import Busy, EdgedError, InvalidRequest
from edged.metrics import Metrics
from edged.server import wire
from edged.server.admin import AdminApi
from edged.server.auth import Gate
from edged.server.disconnect import DisconnectWatcher
from edged.server.embeddings import EmbeddingsApi
from edged.server.keys import INTERNAL, REQUEST_ID, TENANT
from edged.server.openai import OpenAiApi
from edged.server.patience import Patience
from edged.server.systemone import SystemOneApi

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_OPEN_PREFIX = "/health"
_CROWDED_RETRY_S = 2.0
_LAST_WRITES_S = 2.0
_EXPOSED = ", ".join(
    f"x-edged-{name}" for name in ("request-id", "served-by", "model", "reason", "confidence", "offline")
)
WATCHER = web.AppKey("watcher", DisconnectWatcher)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the port serves. ``connections`` counts those that are open, idle ones included."""

    dispatcher: Dispatcher
    engines: Mapping[str, Engine]
    metrics: Metrics
    keys: Iterable[Secret] = ()
    named_keys: Mapping[str, Secret] = field(default_factory=dict)
    connections: Callable[[], int] = lambda: 0


def create_app(config: Config, parts: Parts, *, patience: Patience | None = None) -> web.Application:
    """Everything that is served on the port."""
    patience = patience or Patience()
    gate = Gate(config.server, parts.keys, parts.named_keys)
    watcher = DisconnectWatcher(poll_s=patience.gone_s)
    crowd = _crowd(parts.connections, config.server.max_connections)
    app = web.Application(
        middlewares=[_identify, _errors, crowd, _guard(gate)], client_max_size=config.server.max_body_bytes
    )

    async def watching(_app: web.Application) -> AsyncIterator[None]:
        async with watcher.running():
            yield

    app.cleanup_ctx.append(watching)
    app.on_response_prepare.append(_cors(gate))
    app[WATCHER] = watcher
    app.add_routes(OpenAiApi(config, parts.dispatcher, parts.engines, watcher, patience=patience).routes())
    app.add_routes(EmbeddingsApi(parts.dispatcher, watcher, patience=patience).routes())
    app.add_routes(SystemOneApi(parts.dispatcher, watcher, patience=patience).routes())
    app.add_routes(AdminApi(config, parts.dispatcher, parts.engines, parts.metrics).routes())
    return app


def create_runner(app: web.Application, config: ServerConfig, *, handler_cancellation: bool = False) -> web.AppRunner:
    """What puts the application on sockets.

    Disconnects are noticed by our own watcher, so ``handler_cancellation`` may be either. Bodies are never inflated.
    """
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=handler_cancellation,
        auto_decompress=False,
        keepalive_timeout=config.keep_alive_s,
        shutdown_timeout=_LAST_WRITES_S,
        logger=_http_log,
    )


def _tame(record: logging.LogRecord) -> bool:
    """What is not HTTP is a line of the log, not a traceback, and is not repeated: there may be a key in it."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
        record.msg = f"malformed HTTP from %s: {type(error).__name__}"
    return True


_http_log = logging.getLogger("edged.http")
_http_log.addFilter(_tame)


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request an id; it is on every answer, whatever becomes of it."""
    request[REQUEST_ID] = uuid.uuid4().hex
    request[TENANT] = ""
    return await handler(request)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into an OpenAI error object; an unexpected one is logged and says nothing."""
    try:
        return await handler(request)
    except EdgedError as exc:
        return _error_response(exc)
    except web.HTTPException as exc:
        response = _error_response(_translated(request, exc))
        if "Allow" in exc.headers:
            response.headers["Allow"] = exc.headers["Allow"]
        return response
    except ConnectionError:
        return _cut(request)  # the client is gone: nobody to tell
    except Exception:
        log.exception("request=%s unexpected failure", request[REQUEST_ID])
        return _cut(request) if request.writer.output_size else _error_response(EdgedError(INTERNAL))


def _cut(request: web.Request) -> web.Response:
    """End the connection; what is returned is for aiohttp, which finds that it cannot be sent and keeps quiet."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _crowd(connections: Callable[[], int], limit: int) -> Middleware:
    @web.middleware
    async def crowd(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn connections beyond the limit away; who asks for our health is always answered."""
        if connections() <= limit or request.path.startswith(_OPEN_PREFIX):
            return await handler(request)
        response = _error_response(Busy(f"more than {limit} connections are open", retry_after_s=_CROWDED_RETRY_S))
        response.force_close()
        return response

    return crowd


def _guard(gate: Gate) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Host, Origin and key, in this order."""
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        gate.check_host(host)
        gate.check_origin(origin, host)
        if request.method == "OPTIONS" and origin is not None:
            return web.Response(status=204)
        if not request.path.startswith(_OPEN_PREFIX):
            authorization, api_key = request.headers.get("Authorization"), request.headers.get("x-api-key")
            request[TENANT] = gate.tenant(authorization, api_key)
        return await handler(request)

    return guard


def _cors(gate: Gate) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        """Add the id, and CORS headers for exact, configured origins; streams are prepared late, hence this hook."""
        response.headers["x-edged-request-id"] = request.get(REQUEST_ID, "")
        origin = request.headers.get("Origin")
        if origin is not None and gate.allows_origin(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, X-Edged, X-Api-Key"
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    return prepare


def _error_response(error: EdgedError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body = wire.encode_json(wire.error_body(error))
    return web.Response(body=body, status=error.status, content_type="application/json", headers=headers)


def _translated(request: web.Request, exc: web.HTTPException) -> EdgedError:
    """aiohttp's own refusals (unknown path, wrong method) in our shape."""
    if exc.status == HTTPStatus.NOT_FOUND:
        error = InvalidRequest(f"there is no {request.path[:100]!r} here; the API is under /v1", code="not_found")
    elif exc.status == HTTPStatus.METHOD_NOT_ALLOWED:
        error = InvalidRequest(f"{request.method} is not allowed here", code="method_not_allowed")
    else:
        error = InvalidRequest(exc.reason)
    error.status = exc.status
    return error
