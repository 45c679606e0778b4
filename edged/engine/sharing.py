"""The one owner of the box's cores: gives every model at work its threads, four times a second."""

import asyncio
import logging
import time
from collections.abc import Mapping

from edged.engine.cores import CoreBudget, sample
from edged.engine.host import Engine

log = logging.getLogger(__name__)

ACTIVE_SAMPLE_S = 0.25
IDLE_SAMPLE_S = 1.0


async def share_cores(engines: Mapping[str, Engine], budget: CoreBudget) -> None:
    """Adapt threads until cancelled; at once when a model begins to work, so that two pools never spin together."""
    limits = {name: _pinned(engine) for name, engine in engines.items()}
    work_begins = asyncio.Event()
    for engine in engines.values():
        engine.on_work = work_begins.set
    while True:
        active = [name for name, engine in engines.items() if engine.in_flight]
        shares = budget.share(active, limits) if active else _alone(engines, budget, limits)
        for name, count in shares.items():
            engines[name].set_threads(count)
        try:
            async with asyncio.timeout(ACTIVE_SAMPLE_S if active else IDLE_SAMPLE_S):
                await work_begins.wait()
        except TimeoutError:
            _observe(engines, budget)
        work_begins.clear()


def _observe(engines: Mapping[str, Engine], budget: CoreBudget) -> None:
    granted = budget.granted
    pids = [engine.pid for engine in engines.values() if engine.pid is not None]
    budget.observe(sample(pids, at_s=time.monotonic()))
    if budget.granted != granted:
        log.debug("cores=%d granted, %r", budget.granted, budget)


def _alone(engines: Mapping[str, Engine], budget: CoreBudget, limits: Mapping[str, int | None]) -> dict[str, int]:
    """While nothing runs, every model is got ready to be the next one, alone."""
    return {name: budget.share([name], limits)[name] for name in engines}


def _pinned(engine: Engine) -> int | None:
    threads = engine.config.threads
    return None if threads == "auto" else threads
