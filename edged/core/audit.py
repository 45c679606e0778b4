"""A kept local answer compared with the cloud's."""

from dataclasses import dataclass

from edged.core.record import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a second opinion on the answer to ``request_id`` said. ``at`` is Unix time and only a label.

    ``agreed`` and ``score`` are None where the cloud gave no answer; ``measure`` names how the answers were compared.
    ``attempts`` are the calls it took, ``started_s`` counted from the audit's own beginning.
    """

    request_id: str
    at: float
    attempts: tuple[Attempt, ...]
    measure: str | None = None
    agreed: bool | None = None
    score: float | None = None
    error: str | None = None

    @property
    def cost_uusd(self) -> int:
        return sum(attempt.cost_uusd for attempt in self.attempts)
