"""Which models are loaded: the one owner, on the daemon's event loop.

One load at a time: measuring the room, making room and taking it happen under one lock, so that two loads never see
the same free memory. ``choose_evictions`` and ``idle_too_long`` decide, ``Residency`` acts.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edged.engine import memory
from edged.engine.memory import MemoryAvailable, MemoryNeed
from edged.engine.pressure import Pressure, Reading, read

log = logging.getLogger(__name__)

TICK_S = 1.0
_UNLOAD_S = 10.0


# -- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model. ``used_s`` and ``loaded_s`` are monotonic; ``keep_loaded_s`` 0 keeps it."""

    name: str
    bytes: int
    busy: bool
    used_s: float
    loaded_s: float
    min_loaded_s: float = 0.0
    keep_loaded_s: float = 0.0

    def may_leave(self, now_s: float) -> bool:
        """Idle, and loaded for long enough that loading it was worth it."""
        return not self.busy and now_s - self.loaded_s >= self.min_loaded_s


def least_used(models: Iterable[Resident], now_s: float) -> list[Resident]:
    """The models that may leave, the one unused for longest first."""
    return sorted((m for m in models if m.may_leave(now_s)), key=lambda m: m.used_s)


def choose_evictions(
    models: Sequence[Resident], *, needed_bytes: int, available_bytes: int, now_s: float
) -> tuple[str, ...]:
    """Whom to unload for a newcomer: the least recently used first, nobody in vain.

    Empty where it fits already, and where it would not fit even without all that may leave.
    """
    missing_bytes = needed_bytes - available_bytes
    chosen: list[Resident] = []
    for model in least_used(models, now_s):
        if missing_bytes <= 0:
            break
        chosen.append(model)
        missing_bytes -= model.bytes
    if missing_bytes > 0:
        return ()
    for model in reversed(chosen[:]):  # a large one chosen late may have made smaller ones needless
        if missing_bytes + model.bytes <= 0:
            chosen.remove(model)
            missing_bytes += model.bytes
    return tuple(model.name for model in chosen)


def idle_too_long(models: Iterable[Resident], now_s: float) -> tuple[str, ...]:
    """The models whose ``keep_loaded_s`` is over."""
    idle = (m for m in models if m.keep_loaded_s and m.may_leave(now_s))
    return tuple(m.name for m in idle if now_s - max(m.used_s, m.loaded_s) >= m.keep_loaded_s)


# -- effects ---------------------------------------------------------------------------------------------------------


class Model(Protocol):
    """What residency knows of an engine. ``need`` is set while a worker of it holds memory."""

    need: MemoryNeed | None

    def resident(self) -> Resident | None:
        """How it stands, where it is loaded."""
        ...

    async def unload(self) -> bool:
        """Free its memory; False where it is busy."""
        ...


class Residency:
    """Lets models in, one at a time, and sends idle ones away. ``room`` takes the bytes other models have mapped."""

    def __init__(
        self,
        *,
        room: Callable[[int], MemoryAvailable] = lambda mapped_bytes: memory.available(mapped_bytes=mapped_bytes),
        reading: Callable[[], Reading] = read,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._reading = reading
        self._clock = clock
        self._models: list[Model] = []
        self._door = asyncio.Lock()
        self._pressure = Pressure()

    def __repr__(self) -> str:
        return f"Residency({self._residents()}, {self._pressure!r})"

    @property
    def pressed(self) -> bool:
        """Memory is so short that new work had better go elsewhere."""
        return self._pressure.pressed

    def add(self, model: Model) -> None:
        self._models.append(model)

    async def enter(self, newcomer: Model, need: MemoryNeed, *, evict: bool) -> Callable[[], None]:
        """Wait for this model's turn to load, and make room for it; call what is returned once it is loaded, or gone.

        Only a load that somebody waits for evicts others. Raises: OutOfMemory with the numbers.
        """
        await self._door.acquire()
        try:
            others = [model for model in self._models if model is not newcomer]
            while evict and (leaving := self._leaving(others, need, await self._measure(others))):
                if not await self._evict(others, leaving, f"make room for {need.model}"):
                    break
            memory.check(need, await self._measure(others))
        except BaseException:
            self._door.release()
            raise
        return self._door.release

    async def tend(self, every_s: float = TICK_S) -> None:
        """Until cancelled: unload what idles for too long, and make room before the kernel does."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """One round of ``tend``."""
        was_pressed = self.pressed
        self._pressure.observe(await asyncio.to_thread(self._reading), at_s=self._clock())
        if self.pressed != was_pressed:
            log.warning("memory pressure %s: %r", "begins" if self.pressed else "is over", self._pressure)
        residents, now_s = self._residents(), self._clock()
        await self._evict(self._models, idle_too_long(residents, now_s), "idle")
        if self.pressed:
            await self._evict(self._models, tuple(m.name for m in least_used(residents, now_s)[:1]), "memory pressure")

    async def _measure(self, others: Sequence[Model]) -> MemoryAvailable:
        mapped_bytes = sum(model.need.weights_bytes for model in others if model.need is not None)
        return await asyncio.to_thread(self._room, mapped_bytes)

    def _residents(self) -> list[Resident]:
        return [resident for model in self._models if (resident := model.resident()) is not None]

    def _leaving(self, others: Sequence[Model], need: MemoryNeed, room: MemoryAvailable) -> tuple[str, ...]:
        return choose_evictions(
            [resident for model in others if (resident := model.resident()) is not None],
            needed_bytes=need.total_bytes + memory.RESERVE_BYTES,
            available_bytes=room.bytes,
            now_s=self._clock(),
        )

    async def _evict(self, models: Sequence[Model], names: tuple[str, ...], why: str) -> bool:
        """Unload these; whether any of them left. One that got a request meanwhile stays."""
        left = False
        for model in models:
            resident = model.resident()
            if resident is None or resident.name not in names:
                continue
            log.info("model=%s unloading: %s", resident.name, why)
            try:
                async with asyncio.timeout(_UNLOAD_S):
                    left = await model.unload() or left
            except TimeoutError:
                log.warning("model=%s its worker does not end", resident.name)
        return left
