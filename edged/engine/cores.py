"""How many cores a model may really use: affinity and cgroup quota, not what the machine has."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores this process may run on, less what a CPU quota takes away; at least one. Linux cgroup v2."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota_cores(cgroup / "cpu.max")
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _quota_cores(path: Path) -> float | None:
    """``cpu.max`` holds "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
