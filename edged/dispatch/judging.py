"""What questions with given options teach: the judges hear of each, of some of them with the cloud's word as well."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

from edged.config import RouteConfig
from edged.core import Request, Target
from edged.core.questions import Judges, Question, Seen, Standard, Verdict
from edged.dispatch.audit import Auditor
from edged.dispatch.local import GENERATION, Source
from edged.dispatch.scoring import Scoring, Sitting
from edged.dispatch.trace import Trace
from edged.routing.decisions import LabelPriors
from edged.routing.policy import Terms

log = logging.getLogger(__name__)


class PlainJudges:
    """Judges without tasks: by the route's threshold, and by what recent traffic says of each option."""

    def __init__(self) -> None:
        self._priors = LabelPriors()

    def __repr__(self) -> str:
        return f"PlainJudges({self._priors!r})"

    def question_of(self, _request: Request) -> Question | None:
        return None

    def standard(self, _request: Request, question: Question, *, model: str, threshold: float) -> Standard:  # noqa: ARG002 - the protocol's shape
        return Standard(question=question, threshold=threshold)

    def judge(
        self,
        request: Request,
        standard: Standard,
        logprobs: Sequence[Sequence[float]],
        *,
        model: str,
        state: bytes | None,  # noqa: ARG002 - the protocol's shape
    ) -> Verdict:
        return self._priors.judge(standard.question, logprobs, tenant=request.tenant, model=model)

    def note(self, seen: Seen) -> None:
        """Nothing is learned but the priors."""


class Case:
    """How the local side of one request comes to its answer; here, by generating it."""

    source: Source = GENERATION

    def deferred(self, trace: Trace) -> None:
        """The local side has deferred: make the request of ``trace`` what the cloud is to be asked."""


GENERATED = Case()


class ScoredCase(Case, ABC):
    """One whose answer is chosen among options. ``asked`` is the request as it came."""

    def __init__(self, asked: Request, scoring: Scoring | None) -> None:
        self.asked = asked
        self.scoring = scoring
        self.source = scoring or GENERATION
        self.labels: dict[int, int] = {}  # of a sitting's place, the option the cloud chose
        self.served_by: dict[int, Target] = {}  # of a sitting's place; unset, the box

    @abstractmethod
    def second_opinion(self, places: Sequence[int]) -> tuple[Request, str]:
        """What the cloud is asked to check these sittings, and what was said of them here."""

    @abstractmethod
    def heard(self, text: str, places: Sequence[int]) -> dict[int, int]:
        """The option chosen in a second opinion, by sitting. Raises: ValueError where it is none."""


def teach(
    judges: Judges, auditor: Auditor | None, trace: Trace, case: ScoredCase, *, route: RouteConfig, allowed: Terms
) -> None:
    """Tell the judges of a request that was answered; of its questions in the sample the cloud is asked first.

    Returns at once.
    """
    scoring = case.scoring
    if scoring is None or not scoring.is_judged:
        return
    wanted = []
    for place, sitting in enumerate(scoring.sittings):
        if sitting.standard.is_audited and place not in case.labels and auditor is not None:
            wanted.append(place)
        else:
            _note(judges, _seen(trace, case, sitting, route=route, label=case.labels.get(place)))
    if not wanted or auditor is None:
        return
    request, said = case.second_opinion(wanted)

    def heard(text: str | None) -> None:
        labels = _understood(case, text, wanted)
        for place in wanted:
            _note(judges, _seen(trace, case, scoring.sittings[place], route=route, label=labels.get(place)))

    auditor.ask(request, answers=trace.request.id, route=route, allowed=allowed, said=said, heard=heard)


def _understood(case: ScoredCase, text: str | None, places: Sequence[int]) -> dict[int, int]:
    if text is None:
        return {}
    try:
        return case.heard(text, places)
    except ValueError:
        return {}


def _seen(trace: Trace, case: ScoredCase, sitting: Sitting, *, route: RouteConfig, label: int | None) -> Seen:
    verdict = sitting.verdict
    assert verdict is not None
    assert case.scoring is not None
    place = case.scoring.sittings.index(sitting)
    return Seen(
        request_id=trace.request.id,
        standard=sitting.standard,
        model=route.local,
        tenant=trace.request.tenant,
        locality=trace.locality,
        logprobs=sitting.logprobs,
        state=sitting.state,
        choice=verdict.best,
        confidence=verdict.confidence,
        served_by=case.served_by.get(place, Target.LOCAL),
        label=label,
        is_audited=sitting.standard.is_audited,
        received_at=trace.received_at,
    )


def _note(judges: Judges, seen: Seen) -> None:
    """What a judge cannot take costs no client its answer."""
    try:
        judges.note(seen)
    except Exception:
        log.exception("request=%s taught nothing", seen.request_id)
