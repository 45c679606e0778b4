"""The life of one model's worker: loaded at start or when asked for, watched, restarted with back-off, unloaded."""

import asyncio
import logging
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from edged.config import ModelConfig
from edged.core import EngineSnapshot, EngineState
from edged.engine import gguf, memory, translate
from edged.engine.memory import MemoryNeed
from edged.engine.process import WorkerProcess
from edged.engine.protocol import Event, Load, Loaded, SetThreads, Shutdown, Stats
from edged.engine.residency import Residency, Resident
from edged.errors import EdgedError, NotReady, OutOfMemory

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 30.0
_STABLE_S = 30.0
_SHUTDOWN_S = 5.0
_STUCK_FACTOR = 3
_RETRY_S = 2.0
_LOADS_KEPT = 32
_WORKER_START_S = 1.0
_DISK_BYTES_PER_S = 50_000_000
"""Until a load has been measured: a slow SD card or eMMC."""


class LoadTimes:
    """Measured cold loads, and how long the next one may take."""

    def __init__(self) -> None:
        self._taken_s: deque[float] = deque(maxlen=_LOADS_KEPT)
        self.file_bytes: int | None = None

    def note(self, taken_s: float) -> None:
        self._taken_s.append(taken_s)

    @property
    def last_s(self) -> float | None:
        return self._taken_s[-1] if self._taken_s else None

    @property
    def median_s(self) -> float | None:
        return statistics.median(self._taken_s) if self._taken_s else None

    def left_s(self, *, elapsed_s: float, limit_s: float) -> float:
        """What is left of a load that has been going on for so long; one that is late may take as long again."""
        guess_s = limit_s if self.file_bytes is None else _WORKER_START_S + self.file_bytes / _DISK_BYTES_PER_S
        left_s = (guess_s if self.last_s is None else self.last_s) - elapsed_s
        return left_s if left_s > 0 else elapsed_s


class Life(ABC):
    """Keeps one model's worker alive, or away until a request asks for it. One owner: the daemon's event loop."""

    def __init__(
        self, config: ModelConfig, *, threads: int, locate: Callable[[], Path], residency: Residency | None = None
    ) -> None:
        self.config = config
        self.state = EngineState.DOWN
        self.problem: str | None = None
        self.loads = LoadTimes()
        self.restarts = 0
        self.need: MemoryNeed | None = None
        self._threads = threads
        self._locate = locate
        self._residency = residency or Residency()
        self._residency.add(self)
        self._worker: WorkerProcess | None = None
        self._stats: Stats | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._asked_s: float | None = None  # since when requests wait for the load that is going on
        self._leaving = False
        self._refusal: OutOfMemory | None = None
        self._entry = ExitStack()
        self._waiting = 0
        self._began_s = self._loaded_s = self._used_s = 0.0

    # -- what it is told --

    def start(self) -> None:
        """Be available: begin loading, or wait for the first request; ``settled`` tells when it is decided."""
        if self.config.load == "start":
            self._wanted.set()
        self._set_state(EngineState.LOADING if self._wanted.is_set() else EngineState.UNLOADED)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"engine {self.config.name}")

    def load(self) -> None:
        """Begin loading a model that is unloaded, on a request's behalf; otherwise nothing."""
        if self.state is EngineState.UNLOADED:
            self._asked_s = time.monotonic()
            self._set_state(EngineState.LOADING)
            self._wanted.set()

    async def unload(self) -> bool:
        """End an idle model's worker and wait until its memory is free; False where it is busy or not loaded."""
        worker = self._worker
        if self.state is not EngineState.READY or worker is None or self.in_flight:
            return False
        self._wanted.clear()
        self._leaving = True
        self._set_state(EngineState.UNLOADED)
        worker.send(Shutdown())
        asyncio.get_running_loop().call_later(_SHUTDOWN_S, worker.kill, "it did not end when asked")
        while self._worker is worker:
            await self._changed.wait()
        return True

    async def close(self) -> None:
        """End the worker; requests in flight end with WorkerLost."""
        if self._supervisor is None:
            return
        if self._worker is not None:
            self._worker.send(Shutdown())
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor], timeout=_SHUTDOWN_S)
        self._supervisor = None
        self._end(f"the local model {self.config.name} was shut down")

    def set_threads(self, count: int) -> None:
        """Use so many threads from the next step, and at the next load."""
        if count != self._threads:
            self._threads = count
            if self._worker is not None and self.state is EngineState.READY:
                self._worker.send(SetThreads(count))

    # -- what it says --

    async def settled(self) -> EngineState:
        """Wait until the model is loaded or known to be unavailable."""
        while self.state is EngineState.LOADING:
            await self._changed.wait()
        return self.state

    async def loaded(self) -> None:
        """Return once the model answers; loads it where it loads on demand.

        Raises: NotReady, OutOfMemory.
        """
        if self.state is EngineState.READY:
            return
        self.load()
        if not self.can_answer:
            raise self._not_ready()
        self._waiting += 1
        try:
            async with asyncio.timeout(self.config.load_timeout_s):
                state = await self.settled()
        except TimeoutError as exc:
            raise self._not_ready() from exc
        finally:
            self._waiting -= 1
        if state is not EngineState.READY:
            raise self._refusal or self._not_ready()

    @property
    def can_answer(self) -> bool:
        """A request gets its answer here, if need be after a load it waits for."""
        waits = self.state is EngineState.LOADING and self._asked_s is not None
        return waits or self.state in (EngineState.READY, EngineState.UNLOADED)

    @property
    def is_starting(self) -> bool:
        """The first load is going on: progress that a service manager may be told of."""
        return self.state is EngineState.LOADING and not self.restarts

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def is_stuck(self) -> bool:
        """The worker neither answers nor could be killed: nothing short of a restart of the service helps."""
        return self._worker is not None and self._worker.silent_s > _STUCK_FACTOR * self.config.heartbeat_timeout_s

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Requests that hold, or wait for, this model."""

    def resident(self) -> Resident | None:
        """How it stands among the loaded models; None unless it is one."""
        if self.state is not EngineState.READY or self.need is None:
            return None
        return Resident(
            name=self.config.name,
            bytes=self.need.total_bytes,
            busy=self.in_flight > 0,
            used_s=self._used_s,
            loaded_s=self._loaded_s,
            min_loaded_s=self.config.min_loaded_s,
            keep_loaded_s=self.config.keep_loaded_s,
        )

    def snapshot(self) -> EngineSnapshot:
        """What is known of the engine right now; a stale number is possible, a wrong state is not."""
        return self._at_home(translate.snapshot(self.config, self.state, self._stats))

    def _at_home(self, seen: EngineSnapshot) -> EngineSnapshot:
        """The snapshot, with what the worker does not know."""
        return replace(
            seen,
            load_wait_s=self._load_wait_s(),
            last_load_s=self.loads.last_s,
            median_load_s=self.loads.median_s,
            host_pressure=self._residency.pressed,
        )

    def _load_wait_s(self) -> float | None:
        if self.state is EngineState.READY or not self.can_answer:
            return None
        going = self.state is EngineState.LOADING and self._asked_s is not None
        elapsed_s = time.monotonic() - self._asked_s if going and self._asked_s is not None else 0.0
        return self.loads.left_s(elapsed_s=elapsed_s, limit_s=self.config.load_timeout_s)

    # -- inside --

    @abstractmethod
    def _on_event(self, event: Event) -> None:
        """Take one event of the worker."""

    @abstractmethod
    def _end(self, why: str) -> None:
        """Nothing answers any more: be DOWN and say so to everybody who waits."""

    def _not_ready(self) -> NotReady:
        return NotReady(f"the local model {self.config.name} is {self.state.value}", retry_after_s=_RETRY_S)

    def _set_state(self, state: EngineState) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _supervise(self) -> None:
        """Keep a worker running while it is wanted; after its end start again, slower each time it ends soon."""
        backoff_s = _BACKOFF_FIRST_S
        await self._look_up()
        while True:
            await self._until_wanted()
            started_s = time.monotonic()
            was_ready, self.problem = await self._live()
            if self._leaving:
                self._leaving, self.problem = False, None
                continue
            if time.monotonic() - started_s > _STABLE_S:
                backoff_s = _BACKOFF_FIRST_S
            await self._pause(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_LAST_S)
            self.restarts += 1
            if not was_ready and self.config.load == "first_use" and self._refusal is None:
                self._wanted.clear()

    async def _until_wanted(self) -> None:
        if not self._wanted.is_set():
            self._asked_s = None
            self._set_state(EngineState.UNLOADED)
            await self._wanted.wait()
        self._set_state(EngineState.LOADING)

    async def _pause(self, backoff_s: float) -> None:
        """Between two tries. One that did not fit may be asked for at any moment; it evicts others only then."""
        name = self.config.name
        if self._refusal is None:
            self._end(f"the local model {name} stopped while answering")
            log.error("model=%s worker ended: %s; next start in %.1f s", name, self.problem, backoff_s)
            await asyncio.sleep(backoff_s)
            return
        log.warning("model=%s not loaded: %s", name, self.problem)
        self._wanted.clear()
        self._asked_s = None
        self._set_state(EngineState.UNLOADED)
        with suppress(TimeoutError):
            async with asyncio.timeout(backoff_s if self.config.load == "start" else None):
                await self._wanted.wait()
        self._wanted.set()

    async def _look_up(self) -> None:
        """How large the file of a model that loads later is; a file that is not there is said now."""
        if self.config.load == "start":
            return
        try:
            path = await asyncio.to_thread(self._locate)
            self.loads.file_bytes = (await asyncio.to_thread(path.stat)).st_size
        except (EdgedError, OSError) as exc:
            self.problem = exc.message if isinstance(exc, EdgedError) else f"its file cannot be read: {exc}"
            log.warning("model=%s cannot be loaded: %s", self.config.name, self.problem)

    async def _live(self) -> tuple[bool, str]:
        """One worker's life: whether it was ever ready, and why it ended or could not begin."""
        self._refusal, self._loaded_s = None, 0.0
        with ExitStack() as self._entry:
            try:
                load, need = await asyncio.to_thread(self._look_at, await asyncio.to_thread(self._locate))
                self._entry.callback(await self._residency.enter(self, need, evict=self._asked_s is not None))
                self._began_s, self.need = time.monotonic(), need
                self._worker = await WorkerProcess.spawn(load, self._on_event)
                why = await self._run(self._worker)
            except EdgedError as exc:
                self._refusal = exc if isinstance(exc, OutOfMemory) else None
                return False, exc.message
            except OSError as exc:
                return False, f"it could not be started: {exc}"
            else:
                return self._loaded_s > 0, why
            finally:
                self._worker, self._stats, self.need = None, None, None

    async def _run(self, worker: WorkerProcess) -> str:
        config = self.config
        deadline = asyncio.get_running_loop().call_later(config.load_timeout_s, self._give_up_loading)
        try:
            return await worker.run(silence_s=config.heartbeat_timeout_s, busy_s=config.step_timeout_s)
        finally:
            deadline.cancel()

    def _look_at(self, path: Path) -> tuple[Load, MemoryNeed]:
        """What to load and what it needs, from a look at the file before any worker maps it.

        Raises: ModelFileRejected.
        """
        file = gguf.inspect(path)
        self.loads.file_bytes = file.size_bytes
        load = translate.load(self.config, path, file, threads=self._threads)
        need = memory.estimate(
            self.config.name,
            file,
            pool_tokens=load.pool_tokens,
            sequences=load.sequences,
            output_rows=load.output_rows,
            batch_tokens=load.batch_tokens,
            cell_type=load.kv_format,
            embeds=self.config.purpose != "chat",
        )
        return load, need

    def _give_up_loading(self) -> None:
        if self.state is EngineState.LOADING and self._worker is not None:
            self._worker.kill(f"it did not load within {self.config.load_timeout_s:g} s")

    def _on_loaded(self, event: Loaded) -> None:
        self._entry.close()
        self._loaded_s = self._used_s = time.monotonic()
        self.loads.note(self._loaded_s - self._began_s)
        self.problem = self._refusal = self._asked_s = None
        if self.config.purpose == "chat" and self.config.context_tokens > event.context_train_tokens:
            log.warning(
                "model=%s context_tokens=%d is beyond the %d it was trained for",
                self.config.name,
                self.config.context_tokens,
                event.context_train_tokens,
            )
        for note in event.notes:
            log.warning("model=%s %s", self.config.name, note)
        log.info("model=%s loaded (%s) in %.2f s", self.config.name, event.description, self.loads.last_s or 0.0)
        if self._worker is not None:
            self._worker.send(SetThreads(self._threads))  # what is free may have changed while it loaded
        self._set_state(EngineState.READY)
