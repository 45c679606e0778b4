"""``scripts/start``: one command from a clone to an answer. It reuses the environment that is there."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from daemon_builders import ROOT, clean_environment, until

START_S = 90.0


@pytest.fixture
def home(tmp_path, model_path):
    """A home of its own that already holds the model, as after an earlier pull."""
    models = tmp_path / "state" / "edged" / "models"
    models.mkdir(parents=True)
    here = models / "smollm2-135m-instruct.gguf"
    try:
        here.hardlink_to(model_path)
    except OSError:  # another file system
        shutil.copyfile(model_path, here)
    return tmp_path


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Started:
    """A running ``scripts/start``."""

    def __init__(self, process, log, home):
        self.process = process
        self._log = log
        self._environment = clean_environment(home)

    @property
    def output(self):
        return self._log.read_text()

    def lines(self, word):
        """The ``curl`` and other lines to try, as they were printed."""
        return [line.strip() for line in self.output.splitlines() if line.strip().startswith(word)]

    def shell(self, line):
        """Type a printed line into a terminal."""
        done = subprocess.run(
            shlex.split(line), cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self, number):
        """Signal it as a terminal does its child; (exit status, children that were there)."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.process.wait(30)
        return status, children


@contextmanager
def start(home, *arguments, number=0):
    log = home / f"output-{number}.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [ROOT / "scripts" / "start", *arguments],
            stdout=out,
            stderr=out,
            env=clean_environment(home),
            start_new_session=True,
        )
    started = Started(process, log, home)
    try:
        until(lambda: "loaded (" in started.output or process.poll() is not None, within_s=START_S)
        yield started
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stand_in_cloud_shows_an_escalation_without_a_key(home, number):
    """The printed lines work as they are: a local answer, an escalated one, the split; nothing is left at the end."""
    listen = f"127.0.0.1:{free_port()}"
    with start(home, "--stand-in-cloud", "--listen", listen) as started:
        first, second = started.lines("curl")
        assert listen in first
        answer = started.shell(first)
        assert "x-edged-served-by:" in answer
        escalated = started.shell(second)
        assert re.search(r"x-edged-served-by: cloud", escalated)
        assert re.search(r"x-edged-reason: low_confidence", escalated)
        assert "stand-in" in escalated
        assert "no real model was asked" in escalated
        (ledger,) = started.lines("ledger")
        assert Path(ledger.split()[1]).is_file()
        (split,) = started.lines(".venv/bin/edged split")
        counted = until(lambda: asked(started, f"{split} --json", requests=2))
        assert counted["cloud"] >= 1
        status, children = started.end(number)
        assert status == 0
        assert len(children) >= 2, "a worker and the stand-in"
        assert psutil.wait_procs(children, timeout=5)[1] == []
        assert "Traceback" not in started.output


def asked(started, line, *, requests):
    found = json.loads(started.shell(line))
    return found if found["requests"] == requests else None


def test_a_second_start_takes_seconds_and_keeps_what_was_changed(home):
    """The starter config is written once, commented, cloud off; a changed one is never written over."""
    config = home / "config" / "edged" / "edged.toml"
    with start(home, "--listen", f"127.0.0.1:{free_port()}") as started:
        (line,) = started.lines("curl")
        assert "x-edged-served-by: local" in started.shell(line)
        assert started.end(signal.SIGTERM)[0] == 0
    document = tomllib.loads(config.read_text())
    assert "upstream" not in document
    assert "#[[upstream]]" in config.read_text()
    assert f"wrote {config}" in started.output
    mine = config.read_text().replace("keep_days = 30", "keep_days = 7") + "# mine\n"
    config.write_text(mine)
    began_s = time.monotonic()
    with start(home, "--listen", "127.0.0.1:1", number=1) as again:
        assert time.monotonic() - began_s < 30
        assert config.read_text() == mine
        assert "left as it is" in again.output
        (line,) = again.lines("curl")
        assert "x-edged-served-by: local" in again.shell(line)
        assert again.end(signal.SIGTERM)[0] == 0


def test_help_says_what_it_takes_without_starting_anything(home):
    """--help is quick and changes nothing."""
    done = subprocess.run(
        [ROOT / "scripts" / "start", "--help"], env=clean_environment(home), capture_output=True, text=True, check=True
    )
    assert "--stand-in-cloud" in done.stdout
    assert not (home / "config").exists()


def test_two_ways_to_name_a_config_are_refused(home):
    """A config of one's own is never written over by the stand-in's."""
    done = subprocess.run(
        [ROOT / "scripts" / "start", "--stand-in-cloud", "--config", home / "mine.toml"],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not allowed with" in done.stderr
    assert not (home / "mine.toml").exists()
