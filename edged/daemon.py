"""The composition root: builds every part, starts them in order, and takes them down in the reverse."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from edged import catalogue
from edged.calibration.heads import HeadKey
from edged.catalogue.identity import model_sha256
from edged.config import Config, ModelConfig, TaskFile, named_secrets, resolve_secret, state_directory
from edged.core import EngineSnapshot, KeptMoney
from edged.dispatch.audit import Auditor
from edged.dispatch.cloud import Cloud
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.head_keys import head_key
from edged.dispatch.money import Money
from edged.dispatch.tasks import TaskJudges, local_model
from edged.dispatch.veil import Veil
from edged.engine.cores import CoreBudget, usable_cores
from edged.engine.host import Engine
from edged.engine.residency import Residency
from edged.engine.sharing import share_cores
from edged.errors import CatalogueError, LedgerError
from edged.learning.learning import Learning
from edged.ledger import Ledger
from edged.metrics import Metrics
from edged.notify import Notifier
from edged.server.admin import is_ready
from edged.server.app import Parts, create_app, create_runner
from edged.upstream.client import UpstreamClient

log = logging.getLogger(__name__)

_LAG_LIMIT_S = 5.0
_TICK_S = 1.0
_LOADING_EXTENSION_S = 10.0
_FLUSH_S = 5.0
_KNOWN_S = 30.0


class Daemon:
    """The running service. ``address`` is where it listens once started."""

    def __init__(self, config: Config, *, tasks: Sequence[TaskFile] = (), notifier: Notifier | None = None) -> None:
        self._config = config
        self.learning = _learning(config, tasks)
        self.judges = TaskJudges(tasks, learning=self.learning, model_of=lambda task: local_model(task, config).name)
        self._notifier = notifier or Notifier()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self.metrics = Metrics()
        self.residency = Residency()
        self.engines = {model.name: _engine(model, self.residency) for model in config.models}
        self.ledger: Ledger
        self.dispatcher: Dispatcher
        self.client: UpstreamClient
        self.auditor: Auditor
        self.cloud: Cloud
        self.address = ("", 0)

    def __repr__(self) -> str:
        return f"Daemon({self.address[0]}:{self.address[1]}, {getattr(self, 'dispatcher', None)!r})"

    def stop(self) -> None:
        """Drain and end; a second call ends at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        async with self.started():
            await self._stop.wait()

    @asynccontextmanager
    async def started(self) -> AsyncIterator["Daemon"]:
        """Everything up inside the block; drained and down after it."""
        config = self._config
        async with AsyncExitStack() as stack:
            self.ledger = await asyncio.to_thread(_open_ledger, config)
            stack.push_async_callback(asyncio.to_thread, self.ledger.close, _FLUSH_S)
            self.learning.start()
            stack.push_async_callback(asyncio.to_thread, self.learning.close, _FLUSH_S)
            self.client = UpstreamClient(config.upstreams)
            money = Money(config, journal=self.ledger, kept=await asyncio.to_thread(self._kept_money))
            veil = Veil(config)
            veil.check()
            self.cloud = Cloud(self.client, money, retries=config.upstream_retries, veil=veil)
            sinks = (self.ledger.append, self.metrics.observe)
            self.auditor = Auditor(self.cloud, self.ledger.append_audit)
            self.dispatcher = Dispatcher(
                config,
                engines=self.engines,
                cloud=self.cloud,
                sinks=sinks,
                auditor=self.auditor,
                judges=self.judges,
            )
            self.metrics.watch(self._snapshots, self._gauges, self.cloud.upstreams.states)
            self.metrics.watch_budgets(money.snapshot)
            runner = self._runner()
            await runner.setup()
            # Taken down in the reverse order: streams end with an error from their source before their sockets go.
            stack.push_async_callback(runner.cleanup)
            await self.client.start()
            stack.push_async_callback(self.client.close)
            stack.push_async_callback(self.auditor.close)
            self._site = web.TCPSite(runner, config.server.host, config.server.port, backlog=128)
            await self._site.start()  # before any worker: a port that is taken ends the start here
            for engine in self.engines.values():
                engine.start()
                stack.push_async_callback(engine.close)
            self.address = runner.addresses[0][:2]
            log.info("listening on http://%s:%d, ledger %s", *self.address, config.ledger_path)
            budget = CoreBudget(usable_cores())
            for task in (
                asyncio.create_task(self._pulse(), name="pulse"),
                asyncio.create_task(share_cores(self.engines, budget), name="cores"),
                asyncio.create_task(self.residency.tend(), name="residency"),
                asyncio.create_task(self.cloud.upstreams.tend(), name="upstreams"),
                asyncio.create_task(self.dispatcher.forecasts.tend(), name="sensors"),
            ):
                stack.callback(task.cancel)
            stack.push_async_callback(self._drain)
            yield self

    def _runner(self) -> web.AppRunner:
        config = self._config.server
        keys = [resolve_secret(reference) for reference in config.api_keys]
        parts = Parts(
            dispatcher=self.dispatcher,
            engines=self.engines,
            metrics=self.metrics,
            keys=keys,
            named_keys=named_secrets(self._config.api_keys),
            connections=lambda: len(runner.server.connections) if runner.server else 0,
        )
        runner = create_runner(create_app(self._config, parts), config)
        return runner

    async def _drain(self) -> None:
        """Admit nothing, let what runs finish within the deadline, then end it with an error."""
        self._notifier.stopping("draining")
        self.dispatcher.draining = True
        await self._site.stop()
        waits = [asyncio.create_task(self.dispatcher.idle.wait()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waits, timeout=self._config.server.drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.dispatcher.in_flight:
            log.warning("ending %d requests that outlived the drain", self.dispatcher.in_flight)

    async def _pulse(self) -> None:
        """Tell systemd the truth: ready when requests can be answered, alive while loop and workers are."""
        ready = False
        every_s = min(_TICK_S, self._notifier.watchdog_interval_s or _TICK_S)
        while True:
            due_s = time.monotonic() + every_s
            await asyncio.sleep(every_s)
            if not ready and self._is_ready():
                ready = True
                self._notifier.ready(self._status())
            elif ready:
                self._notifier.status(self._status())
            elif any(engine.is_starting for engine in self.engines.values()):
                self._notifier.extend_timeout(_LOADING_EXTENSION_S)
            if self._is_alive(lag_s=time.monotonic() - due_s):
                self._notifier.watchdog()

    def _is_ready(self) -> bool:
        return is_ready(self._config, self.engines) and not self.dispatcher.draining

    def _is_alive(self, *, lag_s: float) -> bool:
        return lag_s < _LAG_LIMIT_S and not any(engine.is_stuck for engine in self.engines.values())

    def _status(self) -> str:
        states = ", ".join(f"{name} {engine.state}" for name, engine in self.engines.items())
        away = "; offline" if self.cloud.upstreams.offline else ""
        return f"{self.dispatcher.in_flight} in flight; {states or 'no local model'}{away}"

    def _snapshots(self) -> dict[str, EngineSnapshot]:
        return {name: engine.snapshot() for name, engine in self.engines.items()}

    def _gauges(self) -> dict[str, float]:
        stats = self.ledger.stats
        upstreams = self.cloud.upstreams
        learning = self.learning.stats
        return {
            "edged_in_flight_requests": self.dispatcher.in_flight,
            "edged_memory_pressure": float(self.residency.pressed),
            "edged_upstream_calls": self.client.calls,
            "edged_audits_open": self.auditor.open,
            "edged_audits_skipped": self.auditor.skipped,
            "edged_task_observations": learning.kept,
            "edged_task_observations_dropped": learning.dropped,
            "edged_task_fits_running": learning.fitting,
            "edged_upstream_retries": upstreams.retries.taken,
            "edged_upstream_retries_refused": upstreams.retries.refused,
            "edged_offline": float(upstreams.offline),
            "edged_host_speed": self.dispatcher.forecasts.throttle.heat.speed,
            "edged_ledger_written_records": stats.written,
            "edged_ledger_queued_records": stats.queued,
            "edged_ledger_dropped_records": stats.dropped,
            "edged_ledger_degraded": float(stats.degraded),
            "edged_ledger_bytes": stats.bytes,
        }

    def _kept_money(self) -> KeptMoney | None:
        """What an earlier run spent today; None where the ledger cannot say, so that all of it counts as spent."""
        can_wait = self._config.has_budgets
        try:
            return self.ledger.kept_money(timeout_s=_KNOWN_S if can_wait else _TICK_S)
        except LedgerError as exc:
            if not can_wait or self._config.budget.when_ledger_fails == "serve":
                log.warning("budgets begin anew: %s", exc.message)
                return KeptMoney()
            log.warning("no budgeted cloud spend until tomorrow: %s", exc.message)
            return None


def _open_ledger(config: Config) -> Ledger:
    return Ledger.open(config.ledger_path, keep_days=config.ledger.keep_days, store_text=config.ledger.store_text)


def _learning(config: Config, tasks: Sequence[TaskFile]) -> Learning:
    def key_of(task: TaskFile) -> HeadKey:
        model = local_model(task, config)
        return head_key(task, model, model_sha256(model))

    closed = [task for task in tasks if task.is_closed]
    return Learning(closed, directory=state_directory() / "tasks", key_of=key_of)


def _engine(model: ModelConfig, residency: Residency) -> Engine:
    threads = usable_cores() if model.threads == "auto" else model.threads
    return Engine(model, threads=threads, locate=lambda: locate(model), residency=residency)


def locate(model: ModelConfig) -> Path:
    """The model's file. Raises: CatalogueError that says what to do."""
    if model.catalogue is not None:
        return catalogue.resolve(model.catalogue)
    assert model.file is not None
    if not model.file.is_file():
        raise CatalogueError(f"the file of model {model.name!r} does not exist")
    return model.file
