"""A file server that can misbehave in every way a real one has, and entries that point at it."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edged.catalogue import Entry, Pull, Store

MODEL = b"GGUF" + bytes(range(256)) * 4096  # 1 MiB and a little


@dataclass
class Page:
    """What one path serves. ``cuts`` holds, per request, after how many body bytes the connection drops."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    etag: str | None = '"v1"'
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    honours_range: bool = True
    declares_length: bool = True
    cuts: list[int] = field(default_factory=list)
    always_cut: int | None = None
    gate: threading.Event | None = None


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    sent_bytes: int


class FileServer:
    """Serves ``pages`` by path on a free loopback port and remembers every request."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[Seen] = []
        self.reached_gate = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"owner": self}))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(self, path: str, **page: Any) -> str:
        self.pages[path] = Page(**page)
        return self.url(path)

    @property
    def ranges(self) -> list[str | None]:
        return [seen.headers.get("range") for seen in self.seen if seen.method == "GET"]

    def close(self) -> None:
        for page in self.pages.values():
            if page.gate:
                page.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(self.owner.pages.get(self.path, Page(status=404)))

    def do_GET(self) -> None:
        self._answer(self.owner.pages.get(self.path, Page(status=404)))

    def _answer(self, page: Page) -> None:
        start = self._start(page)
        body = page.body[start:]
        if page.honours_range and "Range" in self.headers and start >= len(page.body) > 0:
            self._head(Page(status=416), 0, b"")
            return
        self._head(page, start, body)
        if self.command == "GET":
            self._send(page, body)

    def _start(self, page: Page) -> int:
        asked = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not page.honours_range or not asked or (condition and condition != page.etag):
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def _head(self, page: Page, start: int, body: bytes) -> None:
        self.send_response(206 if start and page.status == 200 else page.status)
        self.send_header("Content-Type", page.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        if page.declares_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in {"ETag": page.etag, "Location": page.location, **page.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self._note(0)

    def _send(self, page: Page, body: bytes) -> None:
        cut = page.cuts.pop(0) if page.cuts else None
        if page.always_cut is not None:
            cut = max(page.always_cut - (len(page.body) - len(body)), 0)
        sent = body[:cut]
        self.owner.seen[-1] = Seen(self.command, self.path, self.owner.seen[-1].headers, len(sent))
        try:
            self.wfile.write(sent)
            self.wfile.flush()
            if page.gate and cut is not None:
                self.owner.reached_gate.set()
                page.gate.wait()
        except OSError:
            pass  # the client hung up first

    def _note(self, sent_bytes: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.seen.append(Seen(self.command, self.path, headers, sent_bytes))


class Notes:
    """A listener that keeps what it hears."""

    def __init__(self, on_note: Callable[[str], None] = lambda _: None) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, int, int]] = []
        self._on_note = on_note

    def progress(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        self.stages.append((stage, done_bytes, total_bytes))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._on_note(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def model() -> bytes:
    return MODEL


@pytest.fixture
def an_entry() -> Callable[..., Entry]:
    def build(*sources: str | list[str], name: str = "tiny", **changes: Any) -> Entry:
        fields: dict[str, Any] = {
            "name": name,
            "title": "A tiny model",
            "sources": list(sources) or ["file:///nowhere/tiny.gguf"],
            "bytes": len(MODEL),
            "sha256": hashlib.sha256(MODEL).hexdigest(),
            "licence": "Apache-2.0",
            "licence_url": "https://licence.example/",
            "context_tokens": 2048,
            "memory": {"kv_bytes_per_token": 10, "runtime_bytes": 1000},
            "chat": {"template": "none", "tools": False},
        }
        return Entry.model_validate(fields | changes)

    return build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def a_pull(store: Store, notes: Notes) -> Callable[..., Pull]:
    def build(entry: Entry, **changes: Any) -> Pull:
        return Pull(entry, store, **({"listener": notes, "retry_waits_s": (0.0, 0.0)} | changes))

    return build
