"""``edged models``, as a user runs it."""

import argparse
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edged.cli import models

MODEL = b"GGUF" + bytes(range(256)) * 2048
ENTRY = """
name = "{name}"
title = "A tiny model"
sources = ["{source}"]
bytes = {bytes}
sha256 = "{sha256}"
licence = "Apache-2.0"
licence_url = "https://licence.example/"
context_tokens = 2048
[memory]
kv_bytes_per_token = 10
runtime_bytes = 1000
[chat]
template = "none"
tools = false
"""


def main(*words: str) -> int:
    """What the console script does with ``models``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path)
    parser = argparse.ArgumentParser(prog="edged")
    models.add_parser(parser.add_subparsers(required=True), common)
    args = parser.parse_args(["models", *words])
    return args.func(args)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A box of its own: state, config and a catalogue with one tiny model that lies in a file."""
    for name in ("catalogue", "state", "config"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("EDGED_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("EDGED_CONFIG", str(tmp_path / "config" / "edged.toml"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "tiny.gguf").write_bytes(MODEL)
    offer(tmp_path, f"file://{tmp_path}/tiny.gguf")
    return tmp_path


def offer(box: Path, source: str, *, content: bytes = MODEL) -> None:
    digest = hashlib.sha256(content).hexdigest()
    text = ENTRY.format(name="tiny", source=source, bytes=len(content), sha256=digest)
    (box / "catalogue" / "tiny.toml").write_text(text)


def rows(capsys) -> dict[str, dict]:
    capsys.readouterr()
    assert main("list", "--json") == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_model_goes_from_missing_to_installed_and_back(box, capsys) -> None:
    """list, pull, verify and remove agree on name, path, bytes and state."""
    path = box / "state" / "models" / "tiny.gguf"
    assert rows(capsys)["tiny"].items() >= {"path": str(path), "bytes": 0, "state": "missing"}.items()
    assert main("pull", "tiny") == 0
    assert str(path) in capsys.readouterr().out
    assert rows(capsys)["tiny"].items() >= {"path": str(path), "bytes": len(MODEL), "state": "installed"}.items()
    assert main("verify") == 0
    assert "tiny: ok" in capsys.readouterr().out
    assert main("remove", "tiny") == 0
    assert rows(capsys)["tiny"]["state"] == "missing"
    assert not path.exists()


def test_a_second_pull_says_so_and_changes_nothing(box, capsys) -> None:
    """Pull is idempotent, even where the source has gone."""
    assert main("pull", "tiny") == 0
    (box / "tiny.gguf").unlink()
    assert main("pull", "tiny") == 0
    assert "tiny: already installed" in capsys.readouterr().out


def test_dir_overrides_the_models_directory(box, capsys) -> None:
    """--dir is used as it is."""
    assert main("pull", "tiny", "--dir", str(box / "elsewhere")) == 0
    assert (box / "elsewhere" / "tiny.gguf").read_bytes() == MODEL
    assert rows(capsys)["tiny"]["state"] == "missing"


def test_the_table_shows_every_model(box, capsys) -> None:
    """Without --json a person gets one line a model."""
    assert main("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["NAME", "STATE", "SIZE"]
    assert {line.split()[0] for line in lines[1:]} >= {"tiny", "smollm2-135m-instruct"}


@pytest.mark.parametrize("action", ["pull", "verify", "remove"])
@pytest.mark.parametrize("name", ["unknown", "../../etc/passwd", "tiny.gguf", ""])
def test_an_unknown_name_is_one_line_and_exit_code_1(box, capsys, action, name) -> None:
    """A name that is no key of the catalogue touches no file and lists the names there are."""
    assert main(action, name) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tiny" in error
    assert not list((box / "state").iterdir())


def test_a_failed_pull_is_one_line_with_the_reason(box, capsys) -> None:
    """The source and what was wrong with it, no traceback."""
    (box / "tiny.gguf").write_bytes(b"<html>sorry</html>")
    assert main("pull", "tiny") == 1
    error = capsys.readouterr().err
    assert "HTML page" in error
    assert error.count("\n") == 1


def test_verify_finds_a_changed_byte(box, capsys) -> None:
    """A damaged file is named with the command that mends it, and the command does mend it."""
    assert main("pull", "tiny") == 0
    path = box / "state" / "models" / "tiny.gguf"
    path.write_bytes(MODEL[:-1] + b"!")
    assert main("verify") == 1
    assert "tiny: corrupt: run: edged models pull tiny" in capsys.readouterr().err
    assert rows(capsys)["tiny"]["state"] == "corrupt"
    assert main("pull", "tiny") == 0
    assert main("verify", "tiny") == 0


def test_verify_of_a_missing_model_fails_and_of_nothing_does_not(box, capsys) -> None:
    """A named model must be there; "everything installed" may be nothing."""
    assert main("verify", "tiny") == 1
    assert "tiny: missing" in capsys.readouterr().err
    assert main("verify") == 0


def test_pull_without_a_name_brings_what_the_config_uses(box, capsys) -> None:
    """The config is the list of models to have; list says which of its models uses which entry."""
    config = box / "config" / "edged.toml"
    config.write_text('[[model]]\nname = "small"\ncatalogue = "tiny"\n[[route]]\nname = "auto"\nlocal = "small"\n')
    assert main("pull", "--config", str(config)) == 0
    assert rows(capsys)["tiny"]["used_by"] == ["small"]


@pytest.mark.parametrize("text", ["[[model]]\nname = 1\n", "not toml", None])
def test_a_config_that_was_asked_for_must_be_good(box, capsys, text) -> None:
    """--config with a bad or missing file is one line and exit code 1; a bad default does not stop a list."""
    config = box / "config" / "edged.toml"
    if text is not None:
        config.write_text(text)
    assert main("list", "--config", str(config)) == 1
    assert str(config) in capsys.readouterr().err
    assert main("pull") == 1
    assert main("list") == 0


def test_a_bad_catalogue_is_one_line(box, capsys) -> None:
    """A wrong key of an entry is named, with its file."""
    (box / "catalogue" / "tiny.toml").write_text('name = "tiny"\n')
    assert main("list") == 1
    assert "tiny.toml: title: Field required" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_one_line(box, capsys) -> None:
    """What the system refuses is said without a traceback."""
    (box / "state" / "models").write_text("a file where the directory should be")
    assert main("pull", "tiny") == 1
    error = capsys.readouterr().err
    assert error.startswith("edged: ")
    assert error.count("\n") == 1


CHILD = """
import sys
sys.path[:0] = [{tests!r}]
from test_cli_models import main
sys.exit(main(*sys.argv[1:]))
"""


def child(*words: str, **options) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, *words], **options)


@pytest.fixture
def stalled(box, monkeypatch):
    """A server that sends half the model and then nothing more until it is told to."""
    monkeypatch.setenv("NO_PROXY", "*")
    go_on = threading.Event()

    class Half(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            body = MODEL[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {start}-{len(MODEL) - 1}/{len(MODEL)}")
            self.end_headers()
            if not start:
                self.wfile.write(body[: len(body) // 2])
                go_on.wait()
                return
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Half) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        offer(box, f"http://127.0.0.1:{http.server_address[1]}/m.gguf")
        yield go_on
        go_on.set()
        http.shutdown()
        thread.join()


def test_ctrl_c_keeps_what_came_and_the_next_pull_goes_on(box, stalled, capsys) -> None:
    """Interrupted is one line and exit code 130; the part stays and is finished later."""
    with child("pull", "tiny", stderr=subprocess.PIPE, text=True) as pull:
        assert pull.stderr is not None
        assert pull.stderr.readline().startswith("edged: tiny: ")
        pull.send_signal(signal.SIGINT)
        rest = pull.stderr.read()
        assert pull.wait(10) == 130
    assert rest.splitlines()[-1] == "edged: interrupted: run it again to go on"
    assert "Traceback" not in rest
    row = rows(capsys)["tiny"]
    assert row["state"] == "partial"
    assert 0 < row["bytes"] <= len(MODEL) // 2
    stalled.set()
    assert main("pull", "tiny") == 0
    assert "going on after" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(box) -> None:
    """On a terminal the progress is drawn; the result still goes to standard output alone."""
    parent, terminal = pty.openpty()
    with child("pull", "tiny", stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"TERM": "xterm"}) as pull:
        os.close(terminal)
        drawn = b""
        try:
            while block := os.read(parent, 4096):
                drawn += block
        except OSError:
            pass  # how a terminal says that the other end has closed
        os.close(parent)
        assert pull.stdout is not None
        assert pull.stdout.read().decode() == f"tiny: installed: {box}/state/models/tiny.gguf\n"
    assert b"tiny" in drawn
    assert b"\x1b[" in drawn
