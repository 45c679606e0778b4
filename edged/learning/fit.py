"""The fit itself: ``python -m edged.learning.fit MEMORY_BYTES CPU_SECONDS``, an ``Order`` on standard input.

The result goes to standard output. It ends with the daemon, and within its limits.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from edged.errors import EdgedError
from edged.learning.child import NICE, Order, Result
from edged.learning.lesson import fit
from edged.learning.store import read

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Fit what the order says; 0 where there is a result, if only that nothing can be certified."""
    _confine(memory_bytes=int(argv[0]), cpu_s=int(argv[1]))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        result = _answer(order)
    except (EdgedError, MemoryError, OSError) as exc:
        print(f"{exc}", file=sys.stderr)  # noqa: T201 - its words are read by the daemon
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


def _answer(order: Order) -> Result:
    observations = [seen for seen in read(Path(order.directory)) if seen.key == order.key.id]
    return fit(order, observations)


def _confine(*, memory_bytes: int, cpu_s: int) -> None:
    """Behind everything else on the box, bounded, and gone when the daemon is."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    for limit, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
