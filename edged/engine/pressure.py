"""Whether memory is short, from the kernel's own numbers: stalls (PSI) and what is available, with hysteresis."""

from dataclasses import dataclass
from pathlib import Path

from edged.engine import memory

STALL_HIGH_PERCENT = 25.0
STALL_LOW_PERCENT = 5.0
ROOM_LOW_BYTES = memory.RESERVE_BYTES // 2
ROOM_ENOUGH_BYTES = memory.RESERVE_BYTES
"""Loading leaves this much free: what was let in is no pressure by itself."""
SAMPLES_TO_BEGIN = 2
CALM_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """``stall_percent``: share of the last ten seconds in which something waited for memory (PSI ``some avg10``)."""

    stall_percent: float = 0.0
    available_bytes: int


class Pressure:
    """Begins with two bad samples in a row, ends after ten calm seconds; in between nothing changes. Pure."""

    def __init__(self) -> None:
        self.pressed = False
        self._bad = 0
        self._calm_since_s: float | None = None
        self._last: Reading | None = None

    def __repr__(self) -> str:
        return f"Pressure(pressed={self.pressed}, {self._last})"

    def observe(self, reading: Reading, *, at_s: float) -> None:
        """Take one sample; ``at_s`` is monotonic."""
        self._last = reading
        self._bad = self._bad + 1 if _is_bad(reading) else 0
        if self._bad >= SAMPLES_TO_BEGIN:
            self.pressed = True
        if not _is_calm(reading):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = at_s
        elif at_s - self._calm_since_s >= CALM_S:
            self.pressed = False


def _is_bad(reading: Reading) -> bool:
    return reading.stall_percent >= STALL_HIGH_PERCENT or reading.available_bytes < ROOM_LOW_BYTES


def _is_calm(reading: Reading) -> bool:
    return reading.stall_percent <= STALL_LOW_PERCENT and reading.available_bytes >= ROOM_ENOUGH_BYTES


def read(proc: Path = Path("/proc")) -> Reading:
    """The machine's numbers; a kernel without PSI stalls never."""
    return Reading(
        stall_percent=_stall_percent(proc / "pressure" / "memory"), available_bytes=memory.available(proc=proc).bytes
    )


def _stall_percent(path: Path) -> float:
    """``some avg10=1.23 avg60=...``"""
    try:
        line = path.read_text(encoding="ascii").splitlines()[0]
        return float(line.partition("avg10=")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
