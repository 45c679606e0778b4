"""What the dispatcher hands out: a committed answer, decisions or vectors, each with what is known of them."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from edged.core import Chunk, Decision, Outcome, Reason, Record, Status, Target
from edged.core.texts import Vectors
from edged.dispatch.decisions import Decided
from edged.dispatch.local import Commit, check_finished, observation
from edged.dispatch.scoring import UNTRUSTED
from edged.dispatch.trace import Trace
from edged.errors import EdgedError
from edged.routing import policy
from edged.routing.policy import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is known when the answer begins: the ``x-edged-*`` headers."""

    request_id: str
    served_by: Target
    model: str
    reason: Reason
    confidence: float | None
    offline: bool = False


class Answer:
    """A committed answer: one author from the first byte to the last. ``settle`` prices what is over."""

    def __init__(self, trace: Trace, commit: Commit, allowed: Terms, *, settle: Callable[[Trace], None]) -> None:
        self._trace = trace
        self._commit = commit
        self._allowed = allowed
        self._settle = settle
        attempt = commit.attempt
        if attempt.finished:
            self._look_back()
        self.head = Head(
            request_id=trace.request.id,
            served_by=attempt.target,
            model=attempt.public_name,
            reason=trace.reason,
            confidence=trace.confidence,
            offline=trace.offline,
        )

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The whole answer, what was held first. Raises: EdgedError where the author fails on the way."""
        attempt = self._commit.attempt
        for chunk in self._commit.held:
            self._trace.sent()
            yield chunk
        try:
            async for chunk in self._commit.rest:
                attempt.see(chunk)
                self._trace.sent()
                yield chunk
            if attempt.target is Target.LOCAL:
                check_finished(attempt)
        except EdgedError as exc:
            attempt.end(Outcome.FAILED, exc.code)
            raise
        attempt.end(Outcome.SERVED)
        self._look_back()

    def record(self) -> Record:
        """The record as it stands; final once ``chunks`` is exhausted."""
        self._settle(self._trace)
        return self._trace.record(Status.OK)

    def _look_back(self) -> None:
        """Score an answer that was not held, and say where a label kept an answer that would have left."""
        attempt, allowed = self._commit.attempt, self._allowed
        if attempt.target is not Target.LOCAL:
            return
        seen = observation(attempt, self._trace.request)
        if attempt.confidence is None:
            attempt.confidence = seen.confidence
        kept_by_label = self._trace.reason is Reason.PINNED_LOCAL and allowed.has_cloud
        if kept_by_label and policy.wanted_to_leave(seen, allowed):
            self._trace.decide(
                Decision(
                    target=Target.LOCAL,
                    reason=Reason.PRIVATE,
                    stage="look_back",
                    confidence=seen.confidence,
                    threshold=None if attempt.standard == UNTRUSTED else attempt.standard or allowed.confidence,
                )
            )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What texts came to, and the record as it stands."""

    head: Head
    vectors: Vectors
    record: Record


@dataclass(frozen=True, slots=True)
class Decisions:
    """An answer to each question, in their order, and the record as it stands."""

    head: Head
    decided: tuple[Decided, ...]
    record: Record
