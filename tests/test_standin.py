"""The stand-in cloud says what it is and ends with whoever started it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from edged import standin

COMMAND = [sys.executable, "-m", "edged.standin", "--port", "0"]


def start(command=COMMAND):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    return process, line.split()[3], line


def ask(base_url, stream):
    body = {"model": "anything", "stream": stream, "messages": [{"role": "user", "content": "are you real?"}]}
    request = urllib.request.Request(
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_it_announces_itself_answers_as_a_stand_in_and_ends_on_sigterm():
    """One line when ready, marked answers, exit status 0."""
    process, base_url, line = start()
    with process:
        assert line == f"stand-in cloud ready: {base_url} model {standin.MODEL}\n"
        assert base_url.startswith("http://127.0.0.1:")
        text = json.loads(ask(base_url, stream=False))["choices"][0]["message"]["content"]
        assert text.startswith(standin.MARK)
        assert "are you real?" in text
        assert "[stand-in" in ask(base_url, stream=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_it_does_not_outlive_its_parent():
    """Killed parents leave no stand-in behind."""
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen({COMMAND!r}, stdout=subprocess.PIPE, text=True)\n"
        "print('pid', p.pid, 'x', p.stdout.readline(), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    with process:
        pid = int(process.stdout.readline().split()[1])
        process.kill()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_port_in_use_is_one_clear_line(capsys):
    """Exit status 1 and the port; a port that cannot exist is a usage error."""
    process, base_url, _ = start()
    with process:
        port = base_url.rpartition(":")[2].partition("/")[0]
        assert standin.main(["--port", port]) == 1
        assert f"port {port} cannot be used" in capsys.readouterr().err
        os.kill(process.pid, signal.SIGTERM)
    with pytest.raises(SystemExit):
        standin.main(["--port", "70000"])
