"""Who answers: the decision at admission, after tokenizing, and at every step of the probation.

Each function reads its arguments and nothing else; the caller logs and acts. Decision lists are numbered in the
docstring and in the body alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from edged.config import RouteConfig
from edged.core import (
    Clearance,
    Decision,
    EngineSnapshot,
    EngineState,
    FinishReason,
    Limits,
    Locality,
    Reason,
    Release,
    Request,
    Target,
    Token,
    Trust,
    strictest,
)
from edged.errors import InvalidRequest, Unsupported
from edged.routing.confidence import free_text_score, structured_score
from edged.routing.latency import predict_total_s, predict_ttft_s

_NO_HURRY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What route, API key and request allow together; each has only tightened it.

    ``has_cloud``: the route names upstreams; ``upstreams``: those that this request may be sent to, in order.
    """

    locality: Locality
    has_local: bool
    has_cloud: bool
    release: Release
    hold_tokens: int
    confidence: float
    ttft_s: float
    itl_s: float
    queue: int
    clearance: Clearance = field(default_factory=Clearance)
    upstreams: tuple[str, ...] = ()
    has_images: bool = False
    deadline_s: float | None = None
    max_cost_uusd: int | None = None

    @property
    def label(self) -> Locality:
        """What the record says: who may see the request before who answers it."""
        return self.locality if self.clearance.label is Locality.ANY else self.clearance.label

    @property
    def may_escalate(self) -> bool:
        return self.has_cloud and self.locality is not Locality.CLOUD_ONLY and not self.is_kept_here

    @property
    def is_kept_here(self) -> bool:
        """A label, not the lack of an upstream, keeps the request on the box."""
        if self.locality is Locality.SITE_ONLY:
            return not self.upstreams
        return self.locality is Locality.LOCAL_ONLY


def terms(
    route: RouteConfig,
    request: Request,
    *,
    key: Locality = Locality.ANY,
    trust_of: Callable[[str], Trust] = lambda _: Trust.CLOUD,
) -> Terms:
    """Combine a route with the label of the caller's API key and with what the request asks: the strictest holds.

    ``cloud_only`` says who answers, the other labels who may see the request: the two combine where both can be kept.
    Raises: InvalidRequest where they exclude each other.
    """
    asked = request.limits
    labels = (route.locality, key, asked.locality)
    clearance = Clearance(strictest(*labels))
    upstreams = tuple(name for name in route.cloud if clearance.admits(trust_of(name)))
    pinned_cloud = Locality.CLOUD_ONLY in labels or not route.local
    if pinned_cloud and not upstreams:
        raise _nowhere(route, labels, clearance)
    if request.images and not upstreams:
        raise _nobody_sees(route, clearance)
    thresholds = route.thresholds
    return Terms(
        locality=Locality.CLOUD_ONLY if Locality.CLOUD_ONLY in labels else clearance.label,
        has_local=bool(route.local),
        has_cloud=bool(route.cloud),
        release=_release(route, asked),
        hold_tokens=route.hold_tokens,
        confidence=max(thresholds.confidence, asked.min_confidence or 0.0),
        ttft_s=thresholds.ttft_s,
        itl_s=thresholds.itl_s,
        queue=thresholds.queue,
        clearance=clearance,
        upstreams=upstreams,
        has_images=bool(request.images),
        deadline_s=asked.deadline_s,
        max_cost_uusd=asked.max_cost_uusd,
    )


def unhurried(allowed: Terms) -> Terms:
    """The same while no upstream can be reached: a slow answer is kept, since nobody is there to give a faster one."""
    return replace(allowed, ttft_s=_NO_HURRY_S, itl_s=_NO_HURRY_S)


def _nowhere(route: RouteConfig, labels: tuple[Locality, ...], clearance: Clearance) -> InvalidRequest:
    """The labels exclude each other, or leave nobody who could answer."""
    names = zip(("the route", "the API key", "the request"), labels, strict=True)
    said = ", ".join(f"{who} says {label}" for who, label in names if label is not Locality.ANY) or "no label"
    has = (
        "no local model" if not route.local else "no cloud model" if not route.cloud else "no upstream that may see it"
    )
    if clearance.label is Locality.SITE_ONLY:
        has = 'no upstream with trust = "site"'
    text = f"edged.locality: nobody may answer on the route {route.name!r}: {said}; it has {has}"
    return InvalidRequest(text, param="edged.locality", code="invalid_value")


def _nobody_sees(route: RouteConfig, clearance: Clearance) -> Unsupported:
    """Local models read text: images go to an upstream or nowhere."""
    why = f"it has no upstream that a request labelled {clearance.label} may go to" if route.cloud else "it has none"
    text = f"messages: images need an upstream model with vision = true on the route {route.name!r}: {why}"
    return Unsupported(text, param="messages")


def _release(route: RouteConfig, asked: Limits) -> Release:
    """A confidence asked for cannot be honoured without holding anything back."""
    judged = bool(asked.min_confidence) and route.release is Release.EAGER
    return Release.GUARDED if judged else route.release


def admit(allowed: Terms, engine: EngineSnapshot | None, *, in_flight: int) -> Decision:
    """Where a request starts, from the request and the load alone.

    1. Pinned to the cloud, or no local model: the cloud.
    2. Images, which no local model reads: the cloud.
    3. No worker to answer: the cloud where allowed, else nobody.
    4. Memory is short, and the cloud is allowed: the cloud.
    5. Loading the model takes longer than a request may wait, and the cloud is allowed: the cloud.
    6. Every slot taken and the queue full: the cloud where allowed, else nobody.
    7. Pinned to the box: the box.
    8. The box.
    """
    elsewhere = Target.CLOUD if allowed.may_escalate else Target.NONE
    if allowed.locality is Locality.CLOUD_ONLY or not allowed.has_local:  # 1
        return _decide(Target.CLOUD, Reason.PINNED_CLOUD)
    if allowed.has_images:  # 2
        return _decide(Target.CLOUD, Reason.CAPABILITY)
    if engine is None or (engine.state is not EngineState.READY and engine.load_wait_s is None):  # 3
        return _decide(elsewhere, Reason.LOCAL_UNAVAILABLE)
    if engine.host_pressure and allowed.may_escalate:  # 4
        return _decide(Target.CLOUD, Reason.HOST_PRESSURE)
    patience_s = load_patience_s(allowed)
    if patience_s is not None and engine.load_wait_s is not None and engine.load_wait_s > patience_s:  # 5
        return _decide(Target.CLOUD, Reason.LOCAL_UNAVAILABLE, threshold=patience_s)
    if in_flight >= engine.slots + allowed.queue:  # 6
        return _decide(elsewhere, Reason.QUEUE_FULL if allowed.may_escalate else Reason.REJECTED_BUSY)
    if allowed.is_kept_here:  # 7
        return _decide(Target.LOCAL, Reason.PINNED_LOCAL)
    return _decide(Target.LOCAL, Reason.WITHIN_BUDGET)  # 8


def load_patience_s(allowed: Terms) -> float | None:
    """How long a request may wait for a model to load; None, for as long as that takes, where nobody else answers."""
    return min(allowed.ttft_s, allowed.deadline_s or allowed.ttft_s) if allowed.may_escalate else None


def review_admission(
    allowed: Terms,
    engine: EngineSnapshot,
    request: Request,
    *,
    prompt_tokens: int,
    cached_tokens: int,
    elapsed_s: float,
    load_s: float = 0.0,
) -> Decision:
    """Stay or leave, now that the prompt's length is known. Without a cloud to ask, or a measured rate, stay.

    ``elapsed_s`` is without ``load_s``, a cold load that came before: it counts for the request's deadline alone.

    1. Prompt and the answer asked for do not fit the context.
    2. The first token would come too late.
    3. The whole answer would come after the request's deadline.
    """
    wait_s = predict_ttft_s(engine, uncached_tokens=prompt_tokens - cached_tokens)
    ttft_s = None if wait_s is None else elapsed_s + wait_s
    stay = Reason.PINNED_LOCAL if allowed.is_kept_here else Reason.WITHIN_BUDGET
    reason, threshold = stay, allowed.ttft_s
    if allowed.may_escalate:
        if request.max_tokens and prompt_tokens + request.max_tokens > engine.context_tokens:  # 1
            reason = Reason.CONTEXT_OVERFLOW
        elif ttft_s is not None and ttft_s > allowed.ttft_s:  # 2
            reason = Reason.TTFT_PREDICTED
        elif _misses_deadline(allowed, engine, request, None if ttft_s is None else ttft_s + load_s):  # 3
            reason, threshold = Reason.DEADLINE_PREDICTED, allowed.deadline_s or 0.0
    target = Target.LOCAL if reason is stay else Target.CLOUD
    return Decision(
        target=target,
        reason=reason,
        stage="review_admission",
        at_s=elapsed_s,
        predicted_ttft_s=ttft_s,
        threshold=None if ttft_s is None else threshold,
    )


def _misses_deadline(allowed: Terms, engine: EngineSnapshot, request: Request, ttft_s: float | None) -> bool:
    if allowed.deadline_s is None or ttft_s is None:
        return False
    total_s = predict_total_s(engine, ttft_s=ttft_s, answer_tokens=request.max_tokens)
    return total_s is not None and total_s > allowed.deadline_s


class Verdict(StrEnum):
    """What to do with a local answer on probation."""

    WAIT = "wait"
    KEEP = "keep"
    DEFER = "defer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A local answer so far. ``elapsed_s`` counts from receipt, ``silence_s`` from the last token.

    ``has_text``: text or a function call. ``structured``: the choices that are JSON or calls, or may become calls.
    ``malformed``: a finished one of them is not what it should be.
    """

    elapsed_s: float
    silence_s: float
    choices: tuple[Sequence[Token], ...]
    finishes: tuple[FinishReason | None, ...]
    has_text: bool
    cut_short: bool = False
    structured: frozenset[int] = frozenset()
    malformed: bool = False

    @property
    def started(self) -> bool:
        return any(self.choices) or self.finished

    @property
    def finished(self) -> bool:
        return all(finish is not None for finish in self.finishes)

    @property
    def held_tokens(self) -> int:
        """Tokens of the shortest choice that is still going on."""
        going = [len(tokens) for tokens, finish in zip(self.choices, self.finishes, strict=True) if finish is None]
        return min(going, default=0)

    @property
    def confidence(self) -> float | None:
        """The least confident choice decides."""
        scores = [self._score(choice, tokens) for choice, tokens in enumerate(self.choices)]
        return min((score for score in scores if score is not None), default=None)

    def _score(self, choice: int, tokens: Sequence[Token]) -> float | None:
        return structured_score(tokens) if choice in self.structured else free_text_score(tokens)


@dataclass(frozen=True, slots=True)
class Review:
    """A verdict with its reason and the confidence it was based on."""

    verdict: Verdict
    reason: Reason = Reason.WITHIN_BUDGET
    confidence: float | None = None


def review(seen: Observation, allowed: Terms) -> Review:
    """Judge a local answer on probation; called at every step and at every deadline (silence is evidence too).

    1. No token in time.
    2. Too long a gap between tokens.
    3. Finished without text, cut short of what was asked, or not the JSON that was asked for.
    4. Enough of it to judge, and not trusted.
    5. Enough of it to judge, and kept.
    6. Wait.
    """
    if not seen.started:
        late = seen.elapsed_s >= allowed.ttft_s  # 1
        return Review(Verdict.DEFER, Reason.TTFT_EXCEEDED) if late else Review(Verdict.WAIT)
    if not seen.finished and seen.silence_s >= allowed.itl_s:  # 2
        return Review(Verdict.DEFER, Reason.ITL_EXCEEDED, seen.confidence)
    if not (seen.finished or _judgeable(seen, allowed)):
        return Review(Verdict.WAIT)  # 6
    if seen.finished and not seen.has_text:  # 3
        return Review(Verdict.DEFER, Reason.INVALID_OUTPUT, seen.confidence)
    if seen.finished and seen.cut_short:
        return Review(Verdict.DEFER, Reason.TRUNCATED, seen.confidence)
    if seen.finished and seen.malformed:
        return Review(Verdict.DEFER, Reason.INVALID_OUTPUT, seen.confidence)
    confidence = seen.confidence
    if allowed.confidence > 0 and (confidence is None or confidence < allowed.confidence):  # 4
        return Review(Verdict.DEFER, Reason.LOW_CONFIDENCE, confidence)
    return Review(Verdict.KEEP, confidence=confidence)  # 5


def _judgeable(seen: Observation, allowed: Terms) -> bool:
    """JSON and calls are short and stand or fall as a whole: they are held to their end."""
    is_guarded = allowed.release is Release.GUARDED and not seen.structured
    return is_guarded and seen.held_tokens >= allowed.hold_tokens


def next_deadline_s(seen: Observation, allowed: Terms) -> float:
    """How long silence may last before ``review`` has to be asked again."""
    if not seen.started:
        return max(0.0, allowed.ttft_s - seen.elapsed_s)
    return max(0.0, allowed.itl_s - seen.silence_s)


def wanted_to_leave(seen: Observation, allowed: Terms) -> bool:
    """Whether a finished answer that had to stay would have been deferred for what it says."""
    return review(seen, allowed).verdict is Verdict.DEFER


def _decide(target: Target, reason: Reason, *, threshold: float | None = None) -> Decision:
    return Decision(target=target, reason=reason, stage="admit", threshold=threshold)
