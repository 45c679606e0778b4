"""What a storm left behind: all that the checks look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from edged.chaos.client import Heard
from edged.chaos.plan import MARK, Ask
from edged.core import Attempt, Outcome, Record, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as the upstream saw it. ``counted_uusd`` is what a provider would charge for it at the least."""

    upstream: str
    mark: str
    fault: str
    text: str
    authorization: str
    ended: bool
    counted_uusd: int


@dataclass(kw_only=True)
class Evidence:
    """``connections`` and ``gauges`` are of the daemon at rest, ``leftovers`` pids that outlived it.

    ``cpu_at_rest`` is the share of a core that the workers used then, ``live_set_aside_s``
    are probes of /health/live that were made while other programs used the box;
    ``local_disturbed``: so were the timed local answers.
    """

    asks: tuple[Ask, ...] = ()
    heard: tuple[Heard, ...] = ()
    calls: tuple[Call, ...] = ()
    records: tuple[Record, ...] = ()
    gauges: Mapping[str, float] = field(default_factory=dict)
    budgets: tuple[Mapping[str, Any], ...] = ()
    connections: int = 0
    cpu_at_rest: float = 0.0
    log: str = ""
    secrets: tuple[str, ...] = ()
    live_s: tuple[float, ...] = ()
    live_set_aside_s: tuple[float, ...] = ()
    local_before_s: tuple[float, ...] = ()
    local_cut_off_s: tuple[float, ...] = ()
    local_disturbed: bool = False
    minutes: float = 1.0
    exit_code: int | None = 0
    leftovers: tuple[int, ...] = ()

    @cached_property
    def by_mark(self) -> dict[str, list[Record]]:
        """The records by the mark in their prompt, or by the id their client was told where no prompt is kept.

        Under "": those of redacted requests whose client left before it heard anything.
        """
        told = {heard.request_id: heard.ask.mark for heard in self.heard if heard.request_id}
        found: dict[str, list[Record]] = {}
        for record in self.records:
            match = MARK.search(record.prompt_text or "")
            found.setdefault(match[0] if match else told.get(record.id, ""), []).append(record)
        return found

    @property
    def unnamed(self) -> list[Record]:
        return self.by_mark.get("", [])

    @cached_property
    def calls_by_mark(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.mark, []).append(call)
        return found


def cloud_attempts(record: Record) -> list[Attempt]:
    return [attempt for attempt in record.attempts if attempt.target is Target.CLOUD]


def is_audit(attempt: Attempt, record: Record) -> bool:
    """An attempt that began after its request had ended."""
    return attempt.outcome is Outcome.AUDITED or attempt.started_s >= record.total_s
