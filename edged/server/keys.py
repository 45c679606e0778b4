"""What the outer layers know of an HTTP request when a handler gets it."""

from aiohttp import web

REQUEST_ID = web.RequestKey("request_id", str)
TENANT = web.RequestKey("tenant", str)
