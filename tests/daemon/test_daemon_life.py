"""Starting, draining, ending, and what the service manager is told meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from daemon_builders import (
    CHAT,
    a_chat,
    clean_environment,
    config_text,
    daemon,
    in_background,
    next_event,
    rest_of,
    scripted_cloud,
    until,
)

from edged.testing.upstream import Reply

ENDLESS = {"max_tokens": 1500, "logit_bias": {"2": -100}}


# -- the end ---------------------------------------------------------------------------------------------------------


def test_a_drain_ends_everything_properly_at_its_deadline(tmp_path, model_path):
    """SIGTERM with a stream, a queued request, a cloud call and an idle connection: each gets a clean end (G10)."""
    slow = Reply(text="word " * 200, chunk_delay_s=0.1)
    with (
        scripted_cloud(default=slow) as cloud,
        daemon(
            tmp_path,
            config_text(model=model_path, cloud=cloud.base_url, server="drain_s = 2", settings="slots = 1"),
        ) as box,
    ):
        box.wait_ready()
        idle = box.connection()
        idle.request("GET", "/health/ready")
        assert idle.getresponse().read()
        running = box.stream("Tell a story.", model="small", **ENDLESS)
        next_event(running)
        calling = box.stream("Tell a story.", model="cloud/scripted-model")
        next_event(calling)
        with in_background(box.ask, "And another.", model="small", **ENDLESS) as queued:
            until(lambda: b"edged_in_flight_requests 3.0" in box.request("GET", "/metrics")[2])
            box.process.send_signal(signal.SIGTERM)
            until(lambda: ready_on(idle) == 503, within_s=1.5)
            idle.request("POST", CHAT, json.dumps(a_chat("too late")))
            refused = idle.getresponse()
            assert refused.status == 503
            assert json.loads(refused.read())["error"]["code"] == "not_ready"
            for stream in (running, calling):
                *_, error, done = rest_of(stream)
                assert done == "[DONE]"
                assert error["error"]["message"]
            status, _, answer = queued()
            assert (status, answer["error"]["code"]) == (503, "worker_lost")
        idle.close()
        assert box.process.wait(10) == 0
        assert "Traceback" not in box.log
        assert "Task was destroyed" not in box.log
        split = box.split(4)
        assert split["requests"] == 4


def ready_on(connection):
    connection.request("GET", "/health/ready")
    response = connection.getresponse()
    response.read()
    return response.status


def test_what_can_finish_within_the_drain_finishes(tmp_path, model_path):
    """SIGTERM lets a short answer come to its own end; then the daemon leaves at once, not at the deadline."""
    with daemon(tmp_path, config_text(model=model_path, server="drain_s = 30")) as box:
        box.wait_ready()
        response = box.stream("Count to ten.", max_tokens=30)
        next_event(response)
        started_s = time.monotonic()
        box.process.send_signal(signal.SIGTERM)
        *_, last, done = rest_of(response)
        assert done == "[DONE]"
        assert "edged" in last
        assert box.process.wait(20) == 0
        assert time.monotonic() - started_s < 15
        assert box.split(1)["local"] == 1


def test_a_second_sigterm_ends_at_once(tmp_path):
    """The first one drains for long; the second does not wait, and is still a clean end (G10)."""
    with (
        scripted_cloud(default=Reply(first_token_delay_s=60)) as cloud,
        daemon(
            tmp_path,
            config_text(cloud=cloud.base_url, server="drain_s = 60").replace(
                "base_url =", "first_token_timeout_s = 60\nbase_url ="
            ),
        ) as box,
        in_background(box.ask) as asked,
    ):
        until(lambda: cloud.seen)
        box.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            box.process.wait(0.7)
        started_s = time.monotonic()
        assert box.end() == 0
        assert time.monotonic() - started_s < 5
        status, _, answer = asked()
        assert status >= 500
        assert answer["error"]["message"]
        assert box.split(1)["requests"] == 1


def test_sigint_drains_as_sigterm_does(tmp_path):
    """Ctrl-C is a clean end."""
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(cloud=cloud.base_url)) as box:
        assert box.end(signal.SIGINT) == 0
        assert "Traceback" not in box.log


# -- the start -------------------------------------------------------------------------------------------------------


def serve(directory, text, **environment):
    """Run ``edged serve`` that is expected to end by itself."""
    config = directory / "edged.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "edged", "serve", "--config", str(config)]
    environment = clean_environment(directory, **environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[server]\nlisten = 5\n", "server.listen"),
        ("[server\n", "line 1"),
        ('[server]\nlisten = "0.0.0.0:8080"\n', "api_keys"),
        ('[[model]]\nname = "a"\nfile = "/x"\n[[route]]\nname = "r"\nlocal = "b"\n', "local"),
        ("[[route]]\nname = 'auto'\nthreshold = 1\n", "threshold"),
        ("", "model"),
        ('[server]\napi_keys = ["env:NOT_SET_ANYWHERE"]\n[[model]]\nname = "a"\nfile = "/x"\n', "NOT_SET_ANYWHERE"),
    ],
)
def test_a_bad_config_stops_the_start_with_one_readable_message(tmp_path, text, names):
    """It says which key; no traceback; status 78, which the unit does not restart on."""
    done = serve(tmp_path, text)
    assert done.returncode == os.EX_CONFIG
    message = done.stderr.strip().splitlines()
    assert len([line for line in message if not line.startswith(("INFO", "DEBUG"))]) == 1, done.stderr
    assert names in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_that_is_taken_is_one_readable_message(tmp_path):
    """It names the address; no worker was started for nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(tmp_path, config_text(model="/nowhere.gguf", listen=f"127.0.0.1:{port}"))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr or f"'127.0.0.1', {port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert "worker" not in done.stderr


def test_a_ledger_that_cannot_be_written_is_one_readable_message(tmp_path):
    """A state directory that is a file: told, not traced."""
    (tmp_path / "state").write_text("not a directory")
    done = serve(tmp_path, config_text(model="/nowhere.gguf"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "state" in done.stderr


# -- health and the service manager ----------------------------------------------------------------------------------


@contextmanager
def manager(directory):
    """A fake service manager; ``heard()`` is every message so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(directory / "notify"))
        sock.setblocking(False)
        messages = []

        def heard():
            while True:
                try:
                    messages.append(sock.recv(4096).decode())
                except BlockingIOError:
                    return "\n".join(messages)

        yield heard


def notifying(directory, *, watchdog_s=1.0):
    return {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}


def test_ready_is_said_only_when_something_can_answer(tmp_path, model_path):
    """No model file, no cloud: live, not ready, with Retry-After; READY=1 comes with the model (A23, G12)."""
    path = tmp_path / "later.gguf"
    with (
        manager(tmp_path) as heard,
        daemon(tmp_path, config_text(model=path), **notifying(tmp_path)) as box,
    ):
        assert box.get("/health/live")[0] == 200
        for health in ("/health/ready", "/health"):
            status, headers, body = box.request("GET", health)
            assert (status, json.loads(body)["status"]) == (503, "not_ready")
            assert int(headers["Retry-After"]) >= 1
        models = json.loads(box.get("/v1/models")[1])["data"]
        assert {entry["edged"]["state"] for entry in models} <= {"down", "loading"}
        status, headers, answer = box.ask()
        assert (status, answer["error"]["code"]) == (503, "not_ready")
        assert int(headers["Retry-After"]) >= 1
        until(lambda: heard().count("WATCHDOG=1") >= 2)
        assert "READY=1" not in heard()
        path.symlink_to(model_path)
        until(lambda: "READY=1" in heard())
        assert box.get("/health/ready")[0] == 200
        assert box.end() == 0
        told = heard()
        assert "STOPPING=1" in told
        assert told.count("READY=1") == 1
        assert told.index("READY=1") < told.index("STOPPING=1")


def test_a_daemon_with_a_cloud_is_ready_before_its_model(tmp_path):
    """A slow or missing model does not keep the service from starting (G12)."""
    with (
        scripted_cloud() as cloud,
        manager(tmp_path) as heard,
        daemon(tmp_path, config_text(model="/nowhere.gguf", cloud=cloud.base_url), **notifying(tmp_path)) as box,
    ):
        until(lambda: "READY=1" in heard(), within_s=10)
        assert box.get("/health/ready")[0] == 200


def test_the_watchdog_is_not_fed_while_the_loop_stands(tmp_path):
    """The ping comes from the loop itself, so a daemon that does not turn is not called alive (G11)."""
    with (
        scripted_cloud() as cloud,
        manager(tmp_path) as heard,
        daemon(tmp_path, config_text(cloud=cloud.base_url), **notifying(tmp_path)) as box,
    ):
        until(lambda: "WATCHDOG=1" in heard())
        box.process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        before = heard().count("WATCHDOG=1")
        time.sleep(1.5)
        assert heard().count("WATCHDOG=1") == before
        box.process.send_signal(signal.SIGCONT)
        until(lambda: heard().count("WATCHDOG=1") > before)
