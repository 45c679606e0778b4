"""How fast /health/live answers during a storm, and what else the box was doing then."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil

from edged.chaos.box import Box

_EVERY_S = 0.05
_LOOK_EVERY_S = 0.5
_NEIGHBOURS_CORES = 0.5


@dataclass(slots=True)
class Neighbours:
    """The cores that processes other than ours used since the last look, in this machine or container."""

    share_cores: float = 0.0
    _looked_s: float = field(default_factory=time.monotonic)
    _before_s: tuple[float, float] = field(default_factory=lambda: (_busy_s(), _ours_s()))

    def look(self) -> bool:
        """Whether they take more than half a core; looks anew twice a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            busy_s, ours_s = _busy_s(), _ours_s()
            theirs_s = (busy_s - self._before_s[0]) - max(0.0, ours_s - self._before_s[1])
            self.share_cores = theirs_s / (now_s - self._looked_s)
            self._looked_s, self._before_s = now_s, (busy_s, ours_s)
        return self.share_cores > _NEIGHBOURS_CORES


async def are_busy() -> bool:
    """Whether other programs take more than half a core just now; takes half a second to find out."""
    neighbours = Neighbours()
    await asyncio.sleep(_LOOK_EVERY_S)
    return neighbours.look()


@dataclass(slots=True)
class LiveProbe:
    """Asks from a thread of its own; probes made while others used the box are set aside, but kept."""

    box: Box
    seconds: list[float] = field(default_factory=list)
    set_aside_s: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        neighbours = Neighbours()
        while not self._stop.wait(_EVERY_S):
            was_busy = neighbours.look()
            started_s = time.monotonic()
            with contextlib.suppress(OSError):
                self.box.get("/health/live")
            took_s = time.monotonic() - started_s
            (self.set_aside_s if was_busy or neighbours.look() else self.seconds).append(took_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        thread = threading.Thread(target=self.run, name="live probe")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _ours_s() -> float:
    """CPU of this process, the daemon and its workers, those that have ended included."""
    ours = psutil.Process()
    total_s = sum(ours.cpu_times()[:4])
    for child in ours.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total_s += sum(child.cpu_times()[:4])
    return float(total_s)
