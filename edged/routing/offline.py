"""Whether the upstreams can be reached from here, and whether any can. Pure: clocks are arguments.

A connection, of a call or of a probe, is the only evidence: a status of 500 proves that the way there is open. One
failed connection is a suspicion; the second in a row, or the first where every other upstream fails too, is a finding.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

MISSES = 2


@dataclass(slots=True)
class _Path:
    misses: int = 0
    heard_s: float = -math.inf


class Uplink:
    """The ways to all upstreams, by upstream. The box is offline when there are some and none is open."""

    def __init__(self, upstreams: Collection[str]) -> None:
        self._paths = {name: _Path() for name in upstreams}

    def __repr__(self) -> str:
        return f"Uplink({ {name: path.misses for name, path in self._paths.items()} })"

    @property
    def offline(self) -> bool:
        return bool(self._paths) and all(map(self._has_missed, self._paths)) and self._misses >= MISSES

    def is_down(self, upstream: str) -> bool:
        """Whether a connection would only be waited for in vain."""
        return self._paths[upstream].misses >= MISSES or self.offline

    def reached(self, upstream: str, *, now_s: float) -> None:
        """A connection was made, or bytes came."""
        path = self._paths[upstream]
        path.misses, path.heard_s = 0, now_s

    def missed(self, upstream: str) -> None:
        """No connection could be made."""
        self._paths[upstream].misses += 1

    @property
    def suspects(self) -> tuple[str, ...]:
        """Upstreams whose last connection failed: to be probed until one succeeds."""
        return tuple(filter(self._has_missed, self._paths))

    @property
    def is_open_question(self) -> bool:
        """Whether a suspicion waits for its confirmation."""
        return any(self._has_missed(name) and not self.is_down(name) for name in self._paths)

    def quiet(self, *, since_s: float) -> set[str]:
        """Those never heard from, or not since."""
        return {name for name in self._paths if self.is_quiet(name, since_s=since_s)}

    def is_quiet(self, upstream: str, *, since_s: float) -> bool:
        return self._paths[upstream].heard_s <= since_s

    @property
    def _misses(self) -> int:
        return sum(path.misses for path in self._paths.values())

    def _has_missed(self, upstream: str) -> bool:
        return self._paths[upstream].misses > 0
