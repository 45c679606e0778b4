"""The whole port in this process: a real AppRunner on port 0, a scripted engine and scripted upstreams behind it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from builders import a_config, a_route

from edged.config import Secret
from edged.core import Record
from edged.dispatch.cloud import Cloud
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.money import Money
from edged.metrics import Metrics
from edged.server.app import WATCHER, Parts, create_app, create_runner
from edged.server.disconnect import DisconnectWatcher
from edged.server.patience import Patience
from edged.testing.local import ScriptedEngine
from edged.testing.upstream import ScriptedUpstream
from edged.upstream.client import UpstreamClient

CHAT = "/v1/chat/completions"


@dataclass
class Port:
    """What a test can see of a running server."""

    host: str
    port: int
    engine: ScriptedEngine
    upstream: ScriptedUpstream
    dispatcher: Dispatcher
    watcher: DisconnectWatcher
    session: aiohttp.ClientSession
    records: list[Record] = field(default_factory=list)
    raw_writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def post(self, body, path=CHAT, **options):
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        return self.session.post(self.url + path, **data, **options)

    def get(self, path, **options):
        return self.session.get(self.url + path, **options)

    async def ask(self, **fields):
        """One whole chat answer: (response, document)."""
        async with self.post(a_chat(**fields)) as response:
            return response, await response.json()

    async def raw(self, *, receive_bytes=None):
        """A bare connection; ``receive_bytes`` limits what this side's kernel takes."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        pair = await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**16)
        self.raw_writers.append(pair[1])
        return pair

    async def at_rest(self, *, within_s=5.0):
        """Wait until nothing is in flight; the seconds it took. Fails where something stays."""
        started_s = time.monotonic()
        async with asyncio.timeout(within_s):
            while self.engine.in_flight or self.dispatcher.in_flight or len(self.watcher):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return time.monotonic() - started_s


@asynccontextmanager
async def serving(
    *,
    engine=None,
    upstream=None,
    routes=None,
    server=None,
    keys=(),
    patience=None,
    handler_cancellation=False,
) -> AsyncIterator[Port]:
    """A port that answers; ``server`` holds keys of the config's ``[server]``."""
    engine = engine or ScriptedEngine()
    metrics, records = Metrics(), []
    async with upstream or ScriptedUpstream() as provider:
        config = a_config(routes=routes or [a_route()], upstreams=[provider.config("cloud")])
        config = config.model_copy(update={"server": config.server.model_copy(update=server or {})})
        client = UpstreamClient(config.upstreams)
        await client.start()
        cloud = Cloud(client, Money(config))
        engines = {"small": engine}
        dispatcher = Dispatcher(config, engines=engines, cloud=cloud, sinks=(records.append, metrics.observe))
        parts = Parts(
            dispatcher=dispatcher,
            engines=engines,
            metrics=metrics,
            keys=[Secret(key) for key in keys],
            connections=lambda: len(runner.server.connections),
        )
        app = create_app(config, parts, patience=patience or Patience())
        runner = create_runner(app, config.server, handler_cancellation=handler_cancellation)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            async with aiohttp.ClientSession() as session:
                port = Port(host, port, engine, provider, dispatcher, app[WATCHER], session, records)
                try:
                    yield port
                finally:
                    for writer in port.raw_writers:
                        writer.transport.abort()
                        with suppress(ConnectionError):
                            await writer.wait_closed()
        finally:
            await runner.cleanup()
            await client.close()


def a_chat(text="hello", *, model="auto", **fields):
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def http(body, path=CHAT, *, headers=(), method="POST", host="127.0.0.1", version="1.1"):
    """The bytes of one request; ``host`` None leaves the header out."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{version}", f"Content-Length: {len(data)}", "Content-Type: application/json"]
    lines += [] if host is None else [f"Host: {host}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data


def events(text):
    """The data of each event of a whole stream, parsed; ``[DONE]`` stays text."""
    found = []
    for line in text.split("\n"):
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found
