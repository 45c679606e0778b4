"""The real daemon as a process of its own, a scripted cloud in a thread, and what a test asks of them."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from edged.testing.upstream import ScriptedUpstream

CHAT = "/v1/chat/completions"
START_S = 60.0
ROOT = Path(__file__).parents[2]


def config_text(*, model=None, cloud=None, server="", settings="", route="", thresholds="", listen="127.0.0.1:0"):
    """A config with one route, ``auto``. ``model`` is a file, ``cloud`` a base URL; the rest is TOML for its section.

    Thresholds are out of the way, so that a test says itself what makes its request leave.
    """
    parts = [f'[server]\nlisten = "{listen}"\n{server}\n']
    if model is not None:
        parts.append(f'[[model]]\nname = "small"\nfile = "{model}"\nthreads = 1\ncontext_tokens = 2048\n{settings}\n')
    if cloud is not None:
        parts.append(f'[[upstream]]\nname = "cloud"\nbase_url = "{cloud}"\n{UPSTREAM_MODEL}')
    local = '"small"' if model is not None else '""'
    names = '["cloud/scripted-model"]' if cloud is not None else "[]"
    parts.append(f'[[route]]\nname = "auto"\nlocal = {local}\ncloud = {names}\n{route}\n')
    parts.append(f"[route.thresholds]\nttft_s = 60\nitl_s = 60\nconfidence = 0\n{thresholds}\n")
    return "\n".join(parts)


UPSTREAM_MODEL = """
[[upstream.model]]
name = "scripted-model"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
"""


class Box:
    """A running daemon."""

    def __init__(self, process: subprocess.Popen[bytes], config: Path, log: Path, environment) -> None:
        self.process = process
        self.config = config
        self._log = log
        self._environment = environment
        self.port = 0
        self._streams = []

    def __repr__(self) -> str:
        return f"Box(pid={self.process.pid}, port={self.port}, status={self.process.poll()})\n{self.log}"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def ledger(self) -> Path:
        return Path(self._environment["XDG_STATE_HOME"]) / "edged" / "ledger.db"

    @property
    def worker_pid(self) -> int:
        """The engine worker's; waits until there is one."""

        def found():
            children = psutil.Process(self.process.pid).children()
            return [c.pid for c in children if "edged.engine.worker" in " ".join(c.cmdline())]

        return until(found)[0]

    def connection(self, *, timeout_s=100.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def request(self, method, path, body=None, headers=None):
        """(status, headers, bytes) of one request on a connection of its own."""
        connection = self.connection()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path, **headers):
        status, _, body = self.request("GET", path, headers=headers)
        return status, body.decode()

    def ask(self, text="Say something.", *, path=CHAT, headers=None, **fields):
        """One whole chat answer: (status, headers, document)."""
        status, found, body = self.request("POST", path, json.dumps(a_chat(text, **fields)), headers)
        return status, found, json.loads(body)

    def stream(self, text="Say something.", *, timeout_s=100.0, **fields):
        """Begin a streamed answer; read it with ``next_event``."""
        connection = self.connection(timeout_s=timeout_s)
        connection.request("POST", CHAT, json.dumps(a_chat(text, stream=True, **fields)))
        response = connection.getresponse()
        self._streams.append((connection, response))
        return response

    def close(self):
        """Hang up on every stream."""
        for pair in self._streams:
            for side in reversed(pair):
                side.close()

    def wait_ready(self):
        """Wait until the model answers."""
        return until(lambda: json.loads(self.get("/health/ready")[1])["models"].get("small") == "ready")

    def command(self, *arguments):
        """Run ``edged ARGUMENTS`` on this daemon's config."""
        command = [sys.executable, "-m", "edged", *arguments, "--config", str(self.config)]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)

    def split(self, requests):
        """The split, once it counts so many requests."""

        def read():
            done = self.command("split", "--json")
            found = json.loads(done.stdout) if done.returncode == 0 else {}
            return found if found.get("requests") == requests else None

        return until(read, within_s=30)

    def end(self, number=signal.SIGTERM, *, within_s=30.0):
        """Signal the daemon; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(within_s)


@contextmanager
def daemon(directory: Path, text: str, *, wait="listening on http://", **environment) -> Iterator[Box]:
    """A daemon on this config, up when the block begins and gone when it ends."""
    process_environment = clean_environment(directory, **environment)
    config = directory / "edged.toml"
    config.write_text(text)
    log = directory / "log.txt"
    command = [sys.executable, "-m", "edged", "serve", "--config", str(config), "--log-level", "debug"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=process_environment)
    box = Box(process, config, log, process_environment)
    try:
        until(lambda: wait in box.log or process.poll() is not None, within_s=START_S)
        if wait in box.log:
            box.port = int(box.log.partition(wait)[2].partition(",")[0].rpartition(":")[2])
        yield box
    finally:
        box.close()
        process.kill()
        process.wait()


def clean_environment(directory: Path, **more):
    """This process's environment with a home of its own."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("EDGED_", "STATE_", "XDG_", "NOTIFY_", "WATCHDOG_"))
    }
    mine = {"XDG_STATE_HOME": str(directory / "state"), "XDG_CONFIG_HOME": str(directory / "config")}
    return {**kept, **mine, "PYTHONPATH": str(ROOT), "HOME": str(directory), **more}


@contextmanager
def scripted_cloud(**options) -> Iterator[ScriptedUpstream]:
    """An upstream on a loop of its own, in a thread."""
    upstream = ScriptedUpstream(**options)
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve():
        async with upstream:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="scripted cloud")
    thread.start()
    started.wait(10)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def a_chat(text, *, model="auto", **fields):
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def next_event(response):
    """The data of the next event of a stream; None at its end."""
    while line := response.readline():
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").decode().strip()
            return data if data == "[DONE]" else json.loads(data)
    return None


def rest_of(response):
    """Every further event."""
    found = []
    while (event := next_event(response)) is not None:
        found.append(event)
    return found


def until(condition, *, within_s=START_S):
    """Wait for what has no event of its own in this process; its value."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{condition} is still {value!r} after {within_s} s")
        time.sleep(0.02)
    return value


@contextmanager
def in_background(function, *arguments, **named):
    """Run a call in a thread; inside the block it goes on, ``result()`` waits for what it returned."""
    box = {}

    def run():
        box["value"] = function(*arguments, **named)

    thread = threading.Thread(target=run)
    thread.start()

    def result(within_s=60.0):
        thread.join(within_s)
        return box["value"]

    try:
        yield result
    finally:
        thread.join(60)
