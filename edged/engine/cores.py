"""Which cores are really free, and how many threads each model gets of them.

llama.cpp's threads spin while they wait for each other. On a core that a neighbour also uses they collapse: on two
cores with one busy neighbour, two threads decode at a third of one thread's speed. So threads follow the cores that
are free now: affinity, cgroup quota, physical and fast cores, less what other processes use, shared by the models at
work. A neighbour counts from its second quarter of a second on, a free core after three.
"""

import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_FAST_SHARE = 0.7
"""A core is fast when its capacity is at least this share of the fastest one's (Arm big.LITTLE, hybrid x86)."""

FREE_ENOUGH = 0.6
"""A core counts as free while at least this much of it is. A busy process that fights two spinning threads for two
cores gets half a core or more; the daemon and its clients at work take less than 0.4 of one."""

RECENT_SAMPLES = 3
"""Two of them make a neighbour, all of them an empty core: a burst of a tenth of a second costs less than a thread that
is away until the cores were seen free again."""


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds used so far on the cores we may use: by everybody, and by our own workers; ``at_s`` monotonic."""

    at_s: float
    busy_s: float
    workers_s: float


class CoreBudget:
    """Turns samples into thread counts. Pure; one owner: the daemon's event loop."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._last: CpuSample | None = None
        self._free = float(cores)
        self._granted = cores
        self._recent = deque([cores] * RECENT_SAMPLES, maxlen=RECENT_SAMPLES)

    def __repr__(self) -> str:
        return f"CoreBudget(cores={self.cores}, free={self._free:.2f}, granted={self._granted})"

    @property
    def granted(self) -> int:
        """Whole cores that may be used now."""
        return self._granted

    def observe(self, sample: CpuSample) -> None:
        """Take one sample; samples should be a quarter of a second apart."""
        last, self._last = self._last, sample
        if last is None or sample.at_s <= last.at_s:
            return
        others = (sample.busy_s - last.busy_s) - (sample.workers_s - last.workers_s)
        self._free = self.cores - max(0.0, others) / (sample.at_s - last.at_s)
        fitting = max(1, min(self.cores, int(self._free + 1 - FREE_ENOUGH)))
        self._recent.append(fitting)
        self._granted = max(min(self._recent), min(self._granted, int(median(self._recent))))

    def share(self, active: Iterable[str], limits: Mapping[str, int | None]) -> dict[str, int]:
        """Threads per model at work. ``limits`` holds a pinned number, or None for a share of what is free."""
        names = sorted(active)
        sharers = [name for name in names if limits[name] is None]
        base, extra = divmod(self._granted, len(sharers)) if sharers else (0, 0)
        shares = {name: max(1, base + (i < extra)) for i, name in enumerate(sharers)}
        return {name: limits[name] or shares[name] for name in names}


def usable_cores(cgroup: Path = _CGROUP, cpus: Path = _CPUS) -> int:
    """Physical fast cores this process may run on, less what a CPU quota takes away; at least one."""
    physical = len({_siblings(cpus, cpu) for cpu in _fast(cpus, os.sched_getaffinity(0))})
    quotas = [quota for directory in _own_cgroups(cgroup) if (quota := _quota_cores(directory)) is not None]
    return max(1, min([physical, *(int(quota) for quota in quotas)]))


def sample(pids: Iterable[int], *, at_s: float) -> CpuSample:
    """Read the clocks of the cores we may use and of our workers."""
    allowed = os.sched_getaffinity(0)
    times = psutil.cpu_times(percpu=True)
    busy_s = sum(sum(t) - t.idle - t.iowait - t.guest - t.guest_nice for i, t in enumerate(times) if i in allowed)
    return CpuSample(at_s, busy_s, sum(map(_process_s, pids)))


def _process_s(pid: int) -> float:
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def _fast(cpus: Path, allowed: set[int]) -> set[int]:
    """Without the slow cores of a hybrid CPU: one slow thread holds all others up."""
    capacity = {cpu: _number(cpus / f"cpu{cpu}" / "cpu_capacity") for cpu in allowed}
    known = [value for value in capacity.values() if value]
    if len(known) < len(allowed):
        return allowed
    return {cpu for cpu, value in capacity.items() if value and value >= _FAST_SHARE * max(known)}


def _siblings(cpus: Path, cpu: int) -> str:
    """Equal for the hardware threads of one core."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _own_cgroups(root: Path) -> list[Path]:
    """This process's cgroup and all above it: each may hold a quota (cgroup v2, else v1's cpu controller)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return [root]
    groups = [root, root / "cpu"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            base = root / "cpu" if controllers else root
            own = base / path.lstrip("/")
            groups += [own, *(parent for parent in own.parents if base in parent.parents)]
    return groups


def _quota_cores(directory: Path) -> float | None:
    """cgroup v2's ``cpu.max`` ("QUOTA PERIOD" in microseconds, or "max PERIOD"), else v1's two files."""
    try:
        quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    quota_us, period_us = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None
