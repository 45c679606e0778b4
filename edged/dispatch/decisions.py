"""Questions with given options: judged by the local model; what it cannot decide is asked of the cloud in one call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edged.chat.questionnaire import as_chat, read, written
from edged.core import FinishReason, Outcome, Reason, Request, Target
from edged.core.questions import Judges, Question, QuestionsRequest
from edged.dispatch.judging import ScoredCase
from edged.dispatch.local import Commit
from edged.dispatch.scoring import Scoring, Sitting
from edged.dispatch.trace import AttemptTrace, Trace
from edged.errors import InvalidRequest
from edged.routing.decisions import item
from edged.routing.policy import Terms

CLOUD = "cloud"
"""The method of an answer that the cloud gave: it says which option, not how likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The answer to one question. ``place`` is the option's; the cloud's answer has the probability 1.

    ``confidence`` is the local model's, whoever answered; None where it was not asked. ``threshold`` is what it was
    held against, None where there is none; ``trusted``: whether it was enough.
    """

    question: Question
    place: int
    probabilities: tuple[float, ...]
    served_by: Target
    reason: Reason
    method: str
    confidence: float | None = None
    threshold: float | None = None
    trusted: bool | None = None
    task: str | None = None
    certificate: str | None = None


class Questionnaire(ScoredCase):
    """The questions of one request, and who answers which.

    Raises: InvalidRequest where the request names a task that there is not.
    """

    def __init__(self, asked: QuestionsRequest, judges: Judges) -> None:
        super().__init__(asked, None)
        self._judges = judges
        self.questions = asked.questions or (_of_task(asked, judges),)
        self._state = asked.state
        self._request = asked
        self._put: tuple[int, ...] = tuple(range(len(self.questions)))  # the places of those the cloud is asked
        self._is_narrow = False

    def __repr__(self) -> str:
        return f"Questionnaire({self.asked.id}, {len(self.questions)}, {self.scoring!r})"

    @property
    def whole(self) -> Request:
        """All of it as somebody is asked who answers in text."""
        return as_chat(self._request, self.questions)

    def begin(self, request: Request, allowed: Terms, *, model: str) -> None:
        """Make ready to be scored by the local ``model``; ``request`` is ``whole`` as the route serves it."""
        self._request = replace(self._request, background=request.background, clearance=request.clearance)
        standards = [
            self._judges.standard(self._request, question, model=model, threshold=allowed.confidence)
            for question in self.questions
        ]
        names = [question.name for question in self.questions]
        self.questions = tuple(replace(s.question, name=name) for s, name in zip(standards, names, strict=True))
        sittings = [Sitting(standard, item(self._state, standard.question)) for standard in standards]
        self.scoring = Scoring(self._request, sittings, self._judges, write=self._written)
        self.source = self.scoring

    def _written(self, places: Sequence[int]) -> str:
        return written(self.questions, places)

    def _some(self, places: Sequence[int]) -> tuple[Question, ...]:
        return tuple(self.questions[place] for place in places)

    # -- what the cloud is asked --

    def deferred(self, trace: Trace) -> None:
        """Where it is known which questions are undecided, the cloud is asked those alone."""
        undecided = [i for i, sitting in enumerate(self._sittings) if not sitting.is_decided]
        if self._sittings and self.is_judged and undecided and trace.reason is Reason.LOW_CONFIDENCE:
            self._put, self._is_narrow = tuple(undecided), True
            trace.request = as_chat(self._request, self._some(undecided))

    def accepts(self, attempt: AttemptTrace) -> bool:
        """Whether what an upstream said answers every question that it was asked with one of its options."""
        return self._answered(attempt) is not None

    def _answered(self, attempt: AttemptTrace) -> tuple[int, ...] | None:
        if attempt.finishes[0] is not FinishReason.STOP:
            return None
        try:
            return read("".join(attempt.texts[0]), self._some(self._put))
        except ValueError:
            return None

    # -- the answer --

    @property
    def _sittings(self) -> tuple[Sitting, ...]:
        return self.scoring.sittings if self.scoring is not None else ()

    @property
    def is_judged(self) -> bool:
        return self.scoring is not None and self.scoring.is_judged

    def settle(self, trace: Trace, commit: Commit) -> None:
        """There is an author: note what was chosen, and of what was judged here how sure it was."""
        if commit.attempt.target is Target.CLOUD:
            chosen = self._answered(commit.attempt)
            assert chosen is not None
            self.labels = dict(zip(self._put, chosen, strict=True))
            self.served_by = dict.fromkeys(self._put, Target.CLOUD)
        else:
            trace.request = as_chat(self._request, self.questions)
        local = next((a for a in trace.attempts if a.target is Target.LOCAL), None)
        if local is None or not self.is_judged:
            return
        assert self.scoring is not None
        local.confidence = self.scoring.confidence
        if len(self.labels) < len(self.questions):
            local.outcome = Outcome.SERVED if local.outcome is Outcome.DISCARDED else local.outcome

    def decided(self, trace: Trace) -> tuple[Decided, ...]:
        """Every question's answer, once the request is settled."""
        return tuple(self._decided(place, trace) for place in range(len(self.questions)))

    def _decided(self, place: int, trace: Trace) -> Decided:
        question, label = self.questions[place], self.labels.get(place)
        if not self.is_judged:
            assert label is not None
            return _of_cloud(question, label, trace.reason)
        sitting = self._sittings[place]
        verdict, standard = sitting.verdict, sitting.standard
        assert verdict is not None
        local = Decided(
            question=question,
            place=verdict.best,
            probabilities=verdict.probabilities,
            served_by=Target.LOCAL,
            reason=self._local_reason(sitting, trace.reason),
            method=verdict.method,
        )
        return replace(
            local if label is None else _of_cloud(question, label, trace.reason),
            confidence=verdict.confidence,
            threshold=standard.threshold,
            trusted=sitting.is_decided,
            task=standard.task,
            certificate=standard.certificate,
        )

    def _local_reason(self, sitting: Sitting, reason: Reason) -> Reason:
        """Of a request that left, or would have, for some of its questions the others say so themselves."""
        if not sitting.is_decided:
            return reason
        if reason is Reason.PRIVATE and not self._is_narrow:
            return Reason.PINNED_LOCAL
        return Reason.WITHIN_BUDGET if self._is_narrow else reason

    # -- what it teaches --

    def second_opinion(self, places: Sequence[int]) -> tuple[Request, str]:
        questions = self._some(places)
        chosen = [verdict.best for place in places if (verdict := self._sittings[place].verdict)]
        return as_chat(self._request, questions), written(questions, chosen)

    def heard(self, text: str, places: Sequence[int]) -> dict[int, int]:
        return dict(zip(places, read(text, self._some(places)), strict=True))


def _of_cloud(question: Question, label: int, reason: Reason) -> Decided:
    certain = tuple(float(option == label) for option in range(len(question.options)))
    return Decided(
        question=question, place=label, probabilities=certain, served_by=Target.CLOUD, reason=reason, method=CLOUD
    )


def _of_task(asked: QuestionsRequest, judges: Judges) -> Question:
    question = judges.question_of(asked)
    if question is None:
        text = f"task: there is no task {asked.limits.task!r} with a closed set of answers here; send questions"
        raise InvalidRequest(text, param="task", code="unknown_task")
    return question
