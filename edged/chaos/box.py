"""The daemon under the storm: a real process on a real model, its workers, its signals, its end."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

HEARTBEAT_S = 2.0
LOAD_S = 15.0
CLIENT_KEYS = ("key-of-ada-5d1c9a", "key-of-bob-77e0b2", "key-of-cyd-c3f418")
UPSTREAM_KEY = "key-of-the-cloud-91ab60"
FAR_BUDGET_USD = 0.04
KEY_BUDGET_USD = 0.004
MODELS = ("auto", "auto", "auto", "auto", "cloudy", "cloudy", "small", "far/m")
RETRY_SHARE = 0.2
RETRY_FLOOR_PER_MINUTE = 30

_START_S = 60.0
_END_S = 30.0
_POLL_S = 0.05
_HTTP_TIMEOUT_S = 10.0

_CONFIG = """
[server]
listen = "127.0.0.1:0"
drain_s = 5
write_timeout_s = 10

[ledger]
store_text = true

[upstream_retries]
share = {retry_share}
floor_per_minute = {retry_floor}

[[api_key]]
name = "ada"
key = "env:CHAOS_KEY_0"
[[api_key]]
name = "bob"
key = "env:CHAOS_KEY_1"
usd_per_day = {key_budget}
[[api_key]]
name = "cyd"
key = "env:CHAOS_KEY_2"
locality = "site_only"

[[model]]
name = "small"
file = "{model}"
context_tokens = 1024
slots = 2
threads = 1
heartbeat_timeout_s = {heartbeat_s}
load_timeout_s = {load_s}
[model.sampling]
temperature = 0.7

[[route]]
name = "auto"
local = "small"
cloud = ["far/m", "near/m"]
hold_tokens = 4
[route.thresholds]
confidence = 0.15
ttft_s = 1.5
itl_s = 1.0
queue = 8
[route.budget]
usd_per_day = {far_budget}
[route.hedge]
enabled = true
max_share = 0.2
after_s = 0.4
[route.audit]
share = 0.6

[[route]]
name = "cloudy"
cloud = ["near/m", "far/m"]
"""

_UPSTREAM = """
[[upstream]]
name = "{name}"
base_url = "{base_url}"
api_key = "env:CHAOS_UPSTREAM_KEY"
trust = "{trust}"
connect_timeout_s = 1
first_token_timeout_s = 1
idle_timeout_s = 1
[[upstream.model]]
name = "m"
context_tokens = 8192
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
"""


class Box:
    """A running daemon and the directory it lives in."""

    def __init__(self, directory: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._directory = directory
        self._process = process
        self._log = log
        self.exit_code: int | None = None
        self.leftovers: tuple[int, ...] = ()
        self.port = self._find_port()

    def __repr__(self) -> str:
        return f"Box(pid={self._process.pid}, port={self.port})"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def ledger(self) -> Path:
        return self._directory / "state" / "edged" / "ledger.db"

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def reloads(self) -> bool:
        """Whether the daemon listens to SIGHUP; one that does not would be ended by it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        caught = re.search(r"(?m)^SigCgt:\s*([0-9a-f]+)", status)
        return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGHUP - 1))

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """The engine's processes that are alive now."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "edged.engine.worker" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def client_connections(self) -> int:
        """Open connections on the daemon's own port."""
        connections = psutil.Process(self._process.pid).net_connections("tcp")
        return sum(c.laddr.port == self.port and c.status == psutil.CONN_ESTABLISHED for c in connections)

    def get(self, path: str) -> str:
        """One GET, without a client's key where none is needed. Raises: OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_HTTP_TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {CLIENT_KEYS[0]}"})
            return connection.getresponse().read().decode()
        except http.client.HTTPException as exc:
            raise OSError(f"no HTTP: {exc!r}") from exc
        finally:
            connection.close()

    def gauges(self) -> dict[str, float]:
        """Every sample of /metrics that has a plain number; those with labels as they are written."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def is_model_ready(self) -> bool:
        return bool(json.loads(self.get("/health/ready"))["models"]["small"] == "ready")

    def budgets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("/edged/budgets"))["budgets"]
        return found

    def end(self) -> None:
        """Stop it as systemd would and note what is left of it."""
        known = [
            self._process.pid,
            *(child.pid for child in psutil.Process(self._process.pid).children(recursive=True)),
        ]
        self.signal(signal.SIGTERM)
        try:
            self.exit_code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _wait(lambda: not any(map(psutil.pid_exists, known)), within_s=5)
        self.leftovers = tuple(pid for pid in known if psutil.pid_exists(pid))

    def kill(self) -> None:
        """However it stands, it is gone afterwards."""
        if self.is_running:
            self._process.kill()
        self._process.wait()

    def _find_port(self) -> int:
        found = _wait(lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log), within_s=_START_S)
        if found is None:
            self.kill()
            raise RuntimeError(f"the daemon did not start:\n{self.log[-2000:]}")
        return int(found[1])

    async def ready(self) -> None:
        """Wait until the local model answers. Raises: TimeoutError."""
        async with asyncio.timeout(_START_S):
            while not await asyncio.to_thread(self.is_model_ready):  # noqa: ASYNC110 - another process
                await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def daemon(directory: Path, model: Path, upstreams: dict[str, tuple[str, str]]) -> Iterator[Box]:
    """A daemon in this directory; ``upstreams`` are (base URL, trust) by name. Raises: RuntimeError."""
    text = _CONFIG.format(
        model=model,
        heartbeat_s=HEARTBEAT_S,
        load_s=LOAD_S,
        far_budget=FAR_BUDGET_USD,
        key_budget=KEY_BUDGET_USD,
        retry_share=RETRY_SHARE,
        retry_floor=RETRY_FLOOR_PER_MINUTE,
    )
    for name, (base_url, trust) in upstreams.items():
        text += _UPSTREAM.format(name=name, base_url=base_url, trust=trust)
    config, log = directory / "edged.toml", directory / "log.txt"
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "edged", "serve", "--config", str(config), "--log-level", "debug"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=_environment(directory))  # noqa: S603 - ourselves
    box = None
    try:
        box = Box(directory, process, log)
        yield box
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _environment(directory: Path) -> dict[str, str]:
    """This process's environment with a state directory and keys of the storm's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EDGED_", "NOTIFY_", "STATE_"))}
    keys = {f"CHAOS_KEY_{number}": key for number, key in enumerate(CLIENT_KEYS)}
    return {**kept, **keys, "CHAOS_UPSTREAM_KEY": UPSTREAM_KEY, "XDG_STATE_HOME": str(directory / "state")}


def _wait(condition: Callable[[], Any], *, within_s: float) -> Any:
    """The condition's value once it holds; its last one where it never does."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    return value
