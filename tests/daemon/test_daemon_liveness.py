"""Health answers in time whatever the engine does."""

import asyncio
import json
import time

import pytest
from daemon_builders import CHAT, config_text, daemon, in_background, until

from edged.config import Config
from edged.core import EngineState
from edged.daemon import Daemon

LIMIT_S = 0.25


def polled(box, is_over, *, every_s=0.02):
    """How long each GET /health/live took, sorted, until it is over."""
    took = []
    connection = box.connection()
    while not is_over():
        started_s = time.monotonic()
        connection.request("GET", "/health/live")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
        took.append(time.monotonic() - started_s)
        time.sleep(every_s)
    connection.close()
    return sorted(took)


def p99(took):
    return took[min(len(took) - 1, int(len(took) * 0.99))]


def test_health_answers_in_time_during_a_long_prefill(tmp_path, model_path):
    """p99 of /health/live stays under 250 ms while a long prompt is prefilled (A12)."""
    with daemon(tmp_path, config_text(model=model_path, server="max_body_bytes = 20000000")) as box:
        box.wait_ready()
        prompt = "the quick brown fox jumps over the lazy dog " * 50
        done = []
        with in_background(lambda: done.append(box.ask(prompt, max_tokens=4, model="small")[0])):
            took = polled(box, lambda: done)
        assert done == [200]
        assert p99(took) < LIMIT_S


def test_health_answers_in_time_while_a_large_body_comes_in(tmp_path):
    """A legal chat of ten megabytes is parsed, validated and refused without holding anyone up (A12)."""
    messages = [{"role": "user", "content": f"{number} " + "lorem ipsum " * 800} for number in range(1000)]
    body = json.dumps({"model": "auto", "messages": messages}).encode()
    assert 9_000_000 < len(body) < 11_000_000
    with daemon(tmp_path, config_text(model="/nowhere.gguf")) as box:
        done = []

        def send_all():
            done.extend(box.request("POST", CHAT, body)[0] for _ in range(5))

        with in_background(send_all):
            took = polled(box, lambda: len(done) == 5, every_s=0.005)
        assert done == [503] * 5
        assert p99(took) < LIMIT_S


class Manager:
    """A service manager that listens inside the process."""

    watchdog_interval_s = 0.02

    def __init__(self):
        self.heard = []

    def watchdog(self):
        self.heard.append("watchdog")

    def ready(self, text):
        self.heard.append("ready")

    def stopping(self, text):
        self.heard.append("stopping")

    def status(self, text):
        """Not looked at here."""

    def extend_timeout(self, duration_s):
        self.heard.append("extend")


def a_daemon(manager):
    document = {
        "server": {"listen": "127.0.0.1:0"},
        "model": [{"name": "small", "file": "/nowhere.gguf"}],
        "route": [{"name": "auto", "local": "small"}],
    }
    return Daemon(Config.model_validate(document), notifier=manager)


async def beats(manager, count=1):
    before = manager.heard.count("watchdog")
    async with asyncio.timeout(5):
        while manager.heard.count("watchdog") < before + count:  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0.005)


@pytest.fixture
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))


def test_the_watchdog_is_not_fed_while_a_worker_is_beyond_rescue(own_state, monkeypatch):
    """A worker that neither answers nor dies needs the whole service restarted: no ping says otherwise (G11)."""

    async def main():
        manager = Manager()
        async with a_daemon(manager).started() as daemon:
            await beats(manager)
            engine = daemon.engines["small"]
            monkeypatch.setattr(type(engine), "is_stuck", True)
            await asyncio.sleep(0.05)
            before = manager.heard.count("watchdog")
            await asyncio.sleep(0.2)
            assert manager.heard.count("watchdog") == before
            monkeypatch.setattr(type(engine), "is_stuck", False)
            await beats(manager)

    asyncio.run(main())


def test_a_loop_that_lagged_is_not_called_alive(own_state, monkeypatch):
    """A beat that comes too late is left out, so that a loop which only just turns is restarted."""
    monkeypatch.setattr("edged.daemon._LAG_LIMIT_S", 0.1)

    async def main():
        manager = Manager()
        async with a_daemon(manager).started():
            await beats(manager, 2)
            before = manager.heard.count("watchdog")
            time.sleep(0.3)  # noqa: ASYNC251 - the fault itself
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert manager.heard.count("watchdog") <= before
            await beats(manager)

    asyncio.run(main())


def test_more_start_time_is_asked_for_only_while_a_model_loads(own_state, monkeypatch):
    """Progress is real in a first load; a model that is down or loads again and again is none (G12)."""
    monkeypatch.setattr("edged.engine.life._BACKOFF_FIRST_S", 60.0)

    async def main():
        manager = Manager()
        async with a_daemon(manager).started() as daemon:
            engine = daemon.engines["small"]
            await engine.settled()
            manager.heard.clear()
            engine.state = EngineState.LOADING
            await beats(manager, 2)
            assert "extend" in manager.heard
            for engine.state, engine.restarts in ((EngineState.DOWN, 0), (EngineState.LOADING, 1)):
                await beats(manager, 2)
                manager.heard.clear()
                await beats(manager, 3)
                assert set(manager.heard) == {"watchdog"}

    asyncio.run(main())


def test_a_daemon_that_drains_is_not_called_ready(own_state):
    """STOPPING=1 is the last word on readiness."""

    async def main():
        manager = Manager()
        async with a_daemon(manager).started() as daemon:
            daemon.dispatcher.draining = True
            daemon.engines["small"].state = EngineState.READY
            await beats(manager, 3)
            assert "ready" not in manager.heard
            daemon.engines["small"].state = EngineState.DOWN
        assert "stopping" in manager.heard

    asyncio.run(main())


def test_a_prompt_that_waits_for_its_turn_is_not_stuck(tmp_path, model_path):
    """Long work is no fault: the worker beats while it computes, so nothing restarts it (G11)."""
    settings = "heartbeat_timeout_s = 1\nslots = 1"
    with daemon(tmp_path, config_text(model=model_path, settings=settings)) as box:
        box.wait_ready()
        pid = box.worker_pid
        prompt = "the quick brown fox jumps over the lazy dog " * 40
        assert box.ask(prompt, max_tokens=2, model="small")[0] == 200
        assert until(lambda: box.worker_pid) == pid
