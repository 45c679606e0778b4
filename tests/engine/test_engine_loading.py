"""Real workers that are loaded when asked for, and unloaded when idle or in the way."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import psutil
import pytest
from real_engine import a_config, a_request, answer, ask, until, workers

from edged.core import EngineState
from edged.engine.host import Engine
from edged.engine.memory import MemoryAvailable
from edged.engine.pressure import Reading
from edged.engine.residency import Residency
from edged.errors import NotReady, OutOfMemory, WorkerLost

SMALL = {"kv_tokens": 512, "context_tokens": 256, "slots": 2, "load": "first_use", "min_loaded_s": 0}
CALM = Reading(available_bytes=10**12)


@asynccontextmanager
async def a_house(path, *, names=("a",), places=9, reading=lambda: CALM, **changes):
    """Engines under one roof, whose box has room for ``places`` of them. Yields (residency, engine, ...)."""
    engines = []

    def room(mapped_bytes: int) -> MemoryAvailable:
        taken = sum(e.need.total_bytes for e in engines if e.need)
        return MemoryAvailable(bytes=places * 300_000_000 - taken)

    residency = Residency(room=room, reading=reading)
    for name in names:
        config = a_config(path, name=name, **(SMALL | changes))
        engines.append(Engine(config, threads=1, locate=lambda: path, residency=residency))
    for engine in engines:
        engine.start()
    try:
        yield residency, *engines
    finally:
        await asyncio.gather(*(engine.close() for engine in engines))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_the_first_requests_load_once_and_idleness_unloads(model_path) -> None:
    """Four requests at once, one worker; when idle its process and memory are gone; the next request loads again."""

    async def main() -> None:
        async with a_house(model_path, keep_loaded_s=0.05) as (residency, engine):
            assert engine.state is EngineState.UNLOADED
            assert not workers()
            assert engine.snapshot().load_wait_s > 0
            assert all(await asyncio.gather(*(ask(engine, max_tokens=2) for _ in range(4))))
            assert len(workers()) == 1
            assert (engine.restarts, engine.in_flight) == (0, 0)
            pid, first_s = engine.pid, engine.snapshot().last_load_s
            assert first_s > 0
            await asyncio.sleep(0.1)
            await residency.look()
            assert engine.state is EngineState.UNLOADED
            assert gone(pid)
            assert engine.need is engine.problem is None
            assert engine.snapshot().load_wait_s == first_s
            assert await ask(engine)
            assert engine.pid != pid
            assert engine.restarts == 0

    asyncio.run(main())


def test_a_busy_model_is_never_unloaded(model_path) -> None:
    """Prepared or running, it stays; so does one somebody waits for."""

    async def main() -> None:
        async with a_house(model_path, keep_loaded_s=0.01) as (residency, engine):
            request = a_request(max_tokens=4)
            prompt = await engine.prepare(request)
            await asyncio.sleep(0.05)
            await residency.look()
            assert not await engine.unload()
            assert [c async for c in engine.generate(prompt)][-1].usage.completion_tokens > 0

    asyncio.run(main())


def test_a_request_that_meets_an_unloading_model_is_served(model_path) -> None:
    """Whatever the order of the two, the request is answered, by the old worker or a new one (A23)."""

    async def main() -> None:
        async with a_house(model_path) as (_, engine):
            assert await ask(engine, max_tokens=2)
            for turns in (0, 1, 2):
                unloading = asyncio.create_task(engine.unload())
                for _ in range(turns):
                    await asyncio.sleep(0)
                assert await asyncio.wait_for(ask(engine, max_tokens=2), 30)
                await unloading
            assert engine.problem is None

    asyncio.run(main())


def test_the_idle_model_makes_room_and_the_busy_one_does_not(model_path) -> None:
    """Room for one: an idle model is evicted for a newcomer; while it answers, the newcomer is refused with numbers."""

    async def main() -> None:
        async with a_house(model_path, names=("a", "b"), places=1) as (_, a, b):
            assert await ask(a, max_tokens=2)
            pid = a.pid
            assert await ask(b, max_tokens=2)
            assert (a.state, b.state) == (EngineState.UNLOADED, EngineState.READY)
            assert gone(pid)
            request = a_request(max_tokens=2)
            prompt = await b.prepare(request)
            with pytest.raises(OutOfMemory, match=r"model a needs about \d+ MB .*are available"):
                await ask(a)
            assert (a.state, b.state) == (EngineState.UNLOADED, EngineState.READY)
            assert "are available" in a.problem
            assert [c async for c in b.generate(prompt)]
            assert await ask(a, max_tokens=2)
            assert a.problem is None

    asyncio.run(main())


def test_a_model_stays_for_its_minimum_residency(model_path) -> None:
    """Two models that want the same place do not throw each other out by turns."""

    async def main() -> None:
        async with a_house(model_path, names=("a", "b"), places=1, min_loaded_s=60) as (_, a, b):
            assert await ask(a, max_tokens=2)
            for _ in range(2):
                with pytest.raises(OutOfMemory):
                    await ask(b)
            assert (a.state, a.restarts) == (EngineState.READY, 0)

    asyncio.run(main())


def test_two_loads_never_see_the_same_room(model_path) -> None:
    """Asked for at the same moment with room for one: one is loaded, the other refused (G05)."""

    async def main() -> None:
        async with a_house(model_path, names=("a", "b"), places=1, min_loaded_s=60) as (_, a, b):
            outcomes = await asyncio.gather(ask(a), ask(b), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {str, OutOfMemory}
            assert {a.state, b.state} == {EngineState.READY, EngineState.UNLOADED}

    asyncio.run(main())


def test_a_start_that_does_not_fit_evicts_nobody_and_waits_to_be_asked(model_path) -> None:
    """A load that no request waits for is no reason to send a loaded model away."""

    async def main() -> None:
        async with a_house(model_path, names=("a", "b"), places=1, load="start") as (_, a, b):
            await a.settled()
            await b.settled()
            assert {a.state, b.state} == {EngineState.READY, EngineState.UNLOADED}
            refused = a if a.state is EngineState.UNLOADED else b
            assert "are available" in refused.problem
            assert await ask(refused, max_tokens=2)

    asyncio.run(main())


def test_a_worker_killed_while_it_loads_costs_the_waiting_request_only(model_path, monkeypatch) -> None:
    """SIGKILL during the load: a prompt error, then unloaded again, and the next request loads."""
    monkeypatch.setattr("edged.engine.life._BACKOFF_FIRST_S", 0.05)

    async def main() -> None:
        async with a_house(model_path) as (_, engine):
            asked = asyncio.create_task(ask(engine))
            await until(lambda: engine.pid is not None)
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises((NotReady, WorkerLost)):
                await asyncio.wait_for(asked, 10)
            assert engine.in_flight == 0
            await until(lambda: engine.state is EngineState.UNLOADED)
            assert "SIGKILL" in engine.problem
            assert await ask(engine, max_tokens=2)
            assert engine.problem is None

    asyncio.run(main())


def test_a_load_nobody_waits_for_any_more_goes_on(model_path) -> None:
    """A client that hangs up during the load leaves a loaded, idle model behind."""

    async def main() -> None:
        async with a_house(model_path) as (_, engine):
            asked = asyncio.create_task(answer(engine, a_request()))
            await until(lambda: engine.pid is not None)
            asked.cancel()
            await asyncio.wait([asked])
            assert engine.in_flight == 0
            assert await asyncio.wait_for(engine.settled(), 30) is EngineState.READY

    asyncio.run(main())


def test_memory_pressure_unloads_idle_models_one_by_one(model_path) -> None:
    """Before the kernel chooses a victim, the least recently used idle model goes; snapshots tell of the pressure."""
    readings = [CALM]

    async def main() -> None:
        house = a_house(model_path, names=("a", "b"), reading=lambda: readings[-1])
        async with house as (residency, a, b):
            assert await ask(a, max_tokens=2)
            assert await ask(b, max_tokens=2)
            readings.append(Reading(stall_percent=60.0, available_bytes=10**12))
            await residency.look()
            assert (a.state, b.state) == (EngineState.READY, EngineState.READY)
            await residency.look()
            assert (a.state, b.state) == (EngineState.UNLOADED, EngineState.READY)
            assert b.snapshot().host_pressure
            await residency.look()
            assert b.state is EngineState.UNLOADED

    asyncio.run(main())


def test_a_missing_file_is_known_before_anyone_asks(tmp_path) -> None:
    """A model that loads on first use and has no file says so at the start."""

    async def main() -> None:
        async with a_house(tmp_path / "missing.gguf") as (_, engine):
            await until(lambda: engine.problem)
            assert engine.state is EngineState.UNLOADED
            with pytest.raises(NotReady):
                await ask(engine)

    asyncio.run(main())
