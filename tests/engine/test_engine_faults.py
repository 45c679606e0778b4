"""A real worker that is killed, stopped, starved of its file or left alone, and clients that leave."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from real_engine import LONG, a_config, a_request, answer, ask, busy, idle, raw, running, text_of, until, workers

from edged.core import EngineState
from edged.engine.host import Engine
from edged.engine.process import WorkerProcess
from edged.errors import CatalogueError, NotReady, WorkerLost

LEFT_S = 2.0
"""A generous bound for "within one step" on a shared machine; a long prompt takes several times as long."""


async def begin(engine, **kwargs):
    """A stream that has produced its first chunk."""
    stream = engine.generate(await engine.prepare(a_request("Tell me a long story.", max_tokens=500, **kwargs)))
    await anext(stream)
    return stream


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_killed_worker_costs_its_requests_and_nothing_else(model_path, quick_restarts) -> None:
    """SIGKILL during a stream: WorkerLost for everyone in flight, a new worker, the next request answered; after five
    lives no descriptor and no zombie is left (A13, A24).
    """

    async def main() -> None:
        async with running(model_path) as engine:
            await ask(engine)
            before = descriptors()
            for life in range(5):
                pid = engine.pid
                stream = await begin(engine)
                waiting = asyncio.ensure_future(
                    answer(engine, a_request("Hi", max_tokens=400, logit_bias=((2, -100.0),)))
                )
                prepared = a_request()
                prompt = await engine.prepare(prepared)
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(WorkerLost, match="stopped while answering"):
                    async for _ in stream:
                        pass
                with pytest.raises(WorkerLost):
                    await waiting
                with pytest.raises(NotReady):
                    await engine.prepare(a_request())
                with pytest.raises(WorkerLost):
                    await anext(engine.generate(prompt))
                assert engine.in_flight == 0
                assert "SIGKILL" in engine.problem
                await until(lambda: engine.state is EngineState.READY)
                assert engine.problem is None
                assert await ask(engine)
                assert engine.restarts == life + 1
                assert is_gone(pid)
            assert descriptors() <= before
            assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]

    asyncio.run(main())


@pytest.fixture
def quick_restarts(monkeypatch) -> None:
    """The pause between starts has its own test; elsewhere it would only be waited for."""
    monkeypatch.setattr("edged.engine.life._BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr("edged.engine.life._BACKOFF_LAST_S", 0.1)


def test_restarts_slow_down(tmp_path, monkeypatch) -> None:
    """A worker that ends at once is started again later each time, up to a limit."""
    pauses = []
    pause = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await pause(0)

    def locate() -> Path:
        raise CatalogueError("no model here")

    async def main() -> None:
        monkeypatch.setattr("edged.engine.life.asyncio.sleep", note)
        engine = Engine(a_config(tmp_path / "x"), threads=1, locate=locate)
        engine.start()
        await until_pauses(9)
        monkeypatch.undo()
        await engine.close()
        assert engine.problem == "no model here"

    async def until_pauses(count: int) -> None:
        while len(pauses) < count:
            await pause(0.001)

    asyncio.run(main())
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("error", [CatalogueError("not installed"), PermissionError(13, "Permission denied")])
def test_a_model_that_cannot_be_located_is_down_with_a_reason(tmp_path, error, quick_restarts) -> None:
    """Whatever keeps the worker from starting, the supervisor goes on trying."""

    def locate() -> Path:
        raise error

    async def main() -> None:
        engine = Engine(a_config(tmp_path / "x"), threads=1, locate=locate)
        engine.start()
        assert await engine.settled() is EngineState.DOWN
        assert str(error.args[-1]) in engine.problem
        await until(lambda: engine.restarts > 0)
        await engine.close()

    asyncio.run(main())


def test_a_stopped_worker_is_noticed(model_path, quick_restarts) -> None:
    """SIGSTOP during a stream: treated as lost within heartbeat_timeout_s, then restarted (A24)."""

    async def main() -> None:
        async with running(model_path, heartbeat_timeout_s=2.0) as engine:
            stream = await begin(engine)
            os.kill(engine.pid, signal.SIGSTOP)
            started_s = time.monotonic()
            with pytest.raises(WorkerLost):
                async for _ in stream:
                    pass
            assert time.monotonic() - started_s < 4
            assert "silent for 2 s" in engine.problem
            await until(lambda: engine.state is EngineState.READY)
            assert await ask(engine)

    asyncio.run(main())


def test_a_daemon_that_was_held_up_does_not_blame_its_worker(model_path) -> None:
    """After a stall of the daemon itself the worker, which went on talking, is still there."""

    async def main() -> None:
        async with running(model_path, heartbeat_timeout_s=1.5) as engine:
            pid = engine.pid
            await asyncio.sleep(0.3)
            time.sleep(2.5)  # noqa: ASYNC251 - the stall
            assert await ask(engine)
            assert engine.pid == pid

    asyncio.run(main())


@pytest.mark.parametrize(
    "content",
    [None, b"", b"GGUF", os.urandom(4096), b"<!DOCTYPE html><html>", b"GGUF" + b"\xff" * 200],
    ids=["missing", "empty", "magic only", "random", "html", "absurd counts"],
)
def test_a_bad_model_file_is_a_clear_problem(tmp_path, content) -> None:
    """The state is DOWN with words for the operator, the daemon goes on."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)

    async def main() -> None:
        engine = Engine(a_config(path), threads=1, locate=lambda: path)
        engine.start()
        assert await engine.settled() is EngineState.DOWN
        assert engine.problem
        assert "model" in engine.problem or "SIG" in engine.problem
        with pytest.raises(NotReady):
            await engine.prepare(a_request())
        await engine.close()

    asyncio.run(main())


def test_a_repaired_file_is_loaded(tmp_path, model_path, quick_restarts) -> None:
    """A truncated file is refused; once the whole file lies at its path, the model comes up by itself."""
    path = tmp_path / "model.gguf"
    path.write_bytes(model_path.read_bytes()[:5_000_000])

    async def main() -> None:
        engine = Engine(a_config(path), threads=1, locate=lambda: path)
        engine.start()
        assert await engine.settled() is EngineState.DOWN
        assert "model" in engine.problem
        shutil.copy(model_path, tmp_path / "whole")
        (tmp_path / "whole").replace(path)
        await until(lambda: engine.state is EngineState.READY)
        assert await ask(engine)
        await engine.close()

    asyncio.run(main())


def test_closing_a_stream_frees_its_slot_within_a_step(model_path) -> None:
    """Cancel while decoding, while a long prompt is computed and while queued: the worker is idle at once and the next
    request is answered; the long prompt is stopped inside its step (A01-A03).
    """

    async def main() -> None:
        async with running(model_path, context_tokens=8192, slots=1, kv_tokens=8192) as engine:
            await ask(engine)
            stream = await begin(engine)
            await stream.aclose()
            assert await idle(engine) < LEFT_S

            prompt = await engine.prepare(a_request(raw(LONG * 700), max_tokens=5))
            assert prompt.prompt_tokens > 6000
            task = asyncio.ensure_future(anext(engine.generate(prompt)))
            queued = asyncio.ensure_future(answer(engine, a_request("queued", max_tokens=2)))
            await busy(engine)
            queued.cancel()
            task.cancel()
            await asyncio.wait([task, queued])
            assert await idle(engine) < LEFT_S
            assert engine.in_flight == 0
            assert await ask(engine)

    asyncio.run(main())


def test_a_step_is_stopped_in_its_middle(model_path) -> None:
    """llama.cpp's own abort: a batch of hundreds of prompt tokens ends long before it is computed."""

    async def main() -> None:
        async with running(model_path, slots=1) as engine:
            long = raw(LONG * 50)
            started_s = time.monotonic()
            await answer(engine, a_request(long, max_tokens=1, tenant="timed"))
            whole_s = time.monotonic() - started_s
            prompt = await engine.prepare(a_request(long, max_tokens=1, tenant="cancelled"))
            task = asyncio.ensure_future(anext(engine.generate(prompt)))
            await busy(engine)
            task.cancel()
            await asyncio.wait([task])
            assert await idle(engine) < max(0.5 * whole_s, 0.5)

    asyncio.run(main())


def test_closing_ends_all_choices(model_path) -> None:
    """n=3: one close, three slots free (A02)."""

    async def main() -> None:
        async with running(model_path) as engine:
            stream = await begin(engine, n=3)
            await stream.aclose()
            assert await idle(engine) < LEFT_S

    asyncio.run(main())


def test_an_answer_that_was_never_started_is_forgotten_when_closed(model_path) -> None:
    """A generator that has not run has no finally: the prompt must not stay behind, and a new try is not touched."""

    async def main() -> None:
        async with running(model_path) as engine:
            request = a_request()
            stream = engine.generate(await engine.prepare(request))
            await stream.aclose()
            assert engine.in_flight == 0
            again = engine.generate(await engine.prepare(request))
            await stream.aclose()
            assert text_of([chunk async for chunk in again])

    asyncio.run(main())


def test_cancels_at_every_moment_leave_the_engine_clean(model_path) -> None:
    """Requests given up at random moments, again and again: nothing is left running, and answers stay right."""

    async def main() -> None:
        async with running(model_path, slots=2) as engine:
            wanted = await ask(engine, "Say hello.", max_tokens=4)

            async def give_up(after_s: float) -> None:
                with_timeout = asyncio.wait_for(answer(engine, a_request("Tell me more.", max_tokens=60)), after_s)
                await asyncio.gather(with_timeout, return_exceptions=True)

            for round_ in range(4):
                await asyncio.gather(*(give_up(0.001 + 0.013 * i * (round_ + 1)) for i in range(8)))
            assert engine.in_flight == 0
            assert await idle(engine) < LEFT_S
            assert await ask(engine, "Say hello.", max_tokens=4) == wanted

    asyncio.run(main())


def test_closing_the_engine_ends_requests_in_flight(model_path) -> None:
    """Shutdown during load and during answers: nobody waits for ever, no process stays."""

    async def main() -> None:
        async with running(model_path) as engine:
            pid = engine.pid
            stream = await begin(engine)
            queued = [asyncio.ensure_future(answer(engine, a_request("x", max_tokens=300))) for _ in range(6)]
            await asyncio.sleep(0)
            await engine.close()
            with pytest.raises((WorkerLost, NotReady)):
                async for _ in stream:
                    pass
            outcomes = await asyncio.wait_for(asyncio.gather(*queued, return_exceptions=True), 5)
            assert all(isinstance(outcome, WorkerLost | NotReady) for outcome in outcomes)
            assert engine.in_flight == 0
            assert is_gone(pid)
            assert engine.state is EngineState.DOWN
        for pause_s in (0, 0.05, 0.3):
            engine = Engine(a_config(model_path), threads=1, locate=lambda: model_path)
            engine.start()
            await asyncio.sleep(pause_s)
            await engine.close()
        await until(lambda: not workers())

    asyncio.run(main())


def test_no_orphan_keeps_the_memory(model_path) -> None:
    """The worker dies with a daemon that was killed (A21)."""
    script = Path(__file__).with_name("orphan.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[2])])}
    with subprocess.Popen([sys.executable, script, model_path], stdout=subprocess.PIPE, env=env, text=True) as daemon:
        pid = int(daemon.stdout.readline())
        assert not is_gone(pid)
        daemon.kill()
    asyncio.run(until(lambda: is_gone(pid), timeout_s=2))


def test_the_worker_says_nothing_of_its_own(model_path, capfd, caplog) -> None:
    """No llama.cpp chatter anywhere: not on our outputs, not on its stderr, and a cancel is no error in the log."""
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with running(model_path, slots=1) as engine:
            await ask(engine)
            task = asyncio.ensure_future(answer(engine, a_request(raw(LONG * 60))))
            await busy(engine)
            task.cancel()
            await asyncio.wait([task])
            await idle(engine)
            assert not engine._worker._stderr
            assert set(os.environ) - set(psutil.Process(engine.pid).environ()), "it has not all of our environment"

    asyncio.run(main())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert [r.getMessage() for r in caplog.records if r.name.startswith("edged")][1:] == []


def test_no_secret_reaches_the_worker(model_path, monkeypatch) -> None:
    """A process that parses model files is not given the keys of the providers."""
    monkeypatch.setenv("CLOUD_API_KEY", "canary")

    async def main() -> None:
        async with running(model_path) as engine:
            assert "canary" not in psutil.Process(engine.pid).environ().values()

    asyncio.run(main())


def test_memory_does_not_grow_with_requests(model_path) -> None:
    """Two hundred short requests, half of them cancelled, cost no memory that stays."""

    async def main() -> None:
        async with running(model_path) as engine:

            async def some(count: int) -> None:
                for i in range(count):
                    stream = engine.generate(await engine.prepare(a_request(raw(f"Question {i % 17}"), max_tokens=2)))
                    await anext(stream)
                    await stream.aclose()

            worker = psutil.Process(engine.pid)
            await some(60)
            before = worker.memory_info().rss
            await some(140)
            assert worker.memory_info().rss - before < 8_000_000

    asyncio.run(main())


class _Ended:
    pid = 1


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (-signal.SIGILL, [], "it died of SIGILL: llama.cpp was built for another CPU"),
        (-signal.SIGKILL, [], "it died of SIGKILL: killed from outside, most often because memory ran out"),
        (-signal.SIGABRT, ["x", "GGML_ASSERT(ok) failed", ""], "it died of SIGABRT: GGML_ASSERT(ok) failed"),
        (70, ["Traceback", "ValueError: no"], "it exited with status 70: ValueError: no"),
        (0, [], "it exited with status 0"),
    ],
)
def test_the_end_of_a_worker_is_told_in_words(code: int, stderr: list[str], words: str) -> None:
    """The operator reads why: the signal, what to do about it, or the worker's last line."""
    worker = WorkerProcess(_Ended(), None, None, lambda event: None)
    worker._stderr.extend(stderr)
    assert worker._epitaph(code).startswith(words)
