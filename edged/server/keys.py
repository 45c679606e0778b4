"""What the outer layers know of an HTTP request when a handler gets it, and what a client hears of our own faults."""

from aiohttp import web

REQUEST_ID = web.RequestKey("request_id", str)
TENANT = web.RequestKey("tenant", str)
INTERNAL = "an internal error occurred; the log has the details"
