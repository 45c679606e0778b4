"""What happened to a request: decisions, attempts, the one record."""

from dataclasses import dataclass, field

from edged.core.answer import Timings, Usage
from edged.core.words import Locality, Outcome, Reason, Status, Target

OFFLINE = "offline"
"""The stage of a decision that notes: the request's upstreams cannot be reached from here."""
NO_RETRY = "retry_budget"
"""The stage of one that notes: a further call was wanted, and the retry budget was spent."""


AFTER_ALL = "after_all"
"""The stage of a decision that the box answers because nobody else did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict of the policy with the numbers it was made from.

    ``cloud_ttft_s`` is when the cloud's first token was expected, counted as ``predicted_ttft_s`` is; ``speed`` the
    share of full speed that heat left.
    """

    target: Target
    reason: Reason
    stage: str
    at_s: float = 0.0
    predicted_ttft_s: float | None = None
    confidence: float | None = None
    threshold: float | None = None
    cloud_ttft_s: float | None = None
    speed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One backend's try. ``started_s`` counts from the request's receipt, the other durations from the attempt.

    ``saved_tokens`` are those that the limit on the answer still allowed when it was stopped before its end.
    ``cost_uusd`` is what counts; beside it stand the provider's own figure, where it named one, and ours.
    """

    target: Target
    backend: str
    model: str
    outcome: Outcome
    started_s: float
    total_s: float
    ttft_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    cost_uusd: int = 0
    cost_estimated: bool = False
    provider_cost_uusd: int | None = None
    computed_cost_uusd: int | None = None
    confidence: float | None = None
    error: str | None = None
    dropped_parameters: tuple[str, ...] = ()
    saved_tokens: int = 0

    @property
    def wasted_tokens(self) -> int:
        """Generated, and served to nobody."""
        return 0 if self.outcome is Outcome.SERVED else self.usage.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The one honest line a request leaves in the ledger. ``received_at`` is Unix time and only a label.

    ``ttft_s`` and ``total_s`` count from receipt; ``ttft_s`` is when a stream's first token was sent, or when the
    author of a whole answer had its first one. ``redacted`` counts the values of each kind that were replaced before an
    upstream saw the request; None where none saw it redacted.
    """

    id: str
    received_at: float
    api: str
    model: str
    status: Status
    served_by: Target
    reason: Reason
    route: str | None = None
    served_model: str | None = None
    tenant: str = ""
    task: str | None = None
    task_source: str | None = None
    locality: Locality = Locality.ANY
    stream: bool = False
    confidence: float | None = None
    predicted_ttft_s: float | None = None
    ttft_s: float | None = None
    total_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    attempts: tuple[Attempt, ...] = ()
    decisions: tuple[Decision, ...] = ()
    error: str | None = None
    redacted: tuple[tuple[str, int], ...] | None = None
    prompt_text: str | None = None
    answer_text: str | None = None

    @property
    def cost_uusd(self) -> int:
        return sum(attempt.cost_uusd for attempt in self.attempts)

    @property
    def offline(self) -> bool:
        """Whether it might have left, and none of its upstreams could be reached."""
        return any(decision.stage == OFFLINE for decision in self.decisions)

    @property
    def prediction_error_s(self) -> float | None:
        """How much later than predicted the local model's first token came, of a request that stayed for it."""
        told = next((d for d in self.decisions if d.predicted_ttft_s is not None and d.target is Target.LOCAL), None)
        local = next((a for a in self.attempts if a.target is Target.LOCAL and a.ttft_s is not None), None)
        went_back = any(decision.stage == AFTER_ALL for decision in self.decisions)
        if told is None or local is None or went_back:
            return None
        assert local.ttft_s is not None
        assert told.predicted_ttft_s is not None
        return local.started_s + local.ttft_s - self.timings.load_s - told.predicted_ttft_s

    @property
    def served(self) -> Attempt | None:
        """The author's attempt: of questions that box and cloud answered together, the cloud's."""
        served = [a for a in self.attempts if a.outcome is Outcome.SERVED]
        return next((a for a in served if a.target is self.served_by), None)
