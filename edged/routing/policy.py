"""Who answers: the decision at admission, after tokenizing, and at every step of the probation.

Each function reads its arguments and nothing else; the caller logs and acts. Decision lists are numbered in the
docstring and in the body alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from edged.config import RouteConfig
from edged.core import (
    Clearance,
    Decision,
    EngineSnapshot,
    EngineState,
    Limits,
    Locality,
    Reason,
    Release,
    Request,
    Target,
    Trust,
    strictest,
)
from edged.errors import InvalidRequest, Unsupported
from edged.routing.latency import EXPECTED_ANSWER_TOKENS, NOTHING_LEARNED, Learned, predict_total_s, predict_ttft_s
from edged.routing.pace import Outlook
from edged.routing.probation import Observation

_NO_HURRY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What route, API key and request allow together; each has only tightened it.

    ``has_cloud``: the route names upstreams; ``upstreams``: those that this request may be sent to, in order.
    ``learned`` and ``outlook`` are what was measured of the local model and of the upstream that would be asked;
    ``keeps_author``: the conversation is at home in the cloud.
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
    learned: Learned = NOTHING_LEARNED
    outlook: Outlook | None = None
    keeps_author: bool = False

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
    3. The conversation is at home in the cloud, which is allowed: the cloud.
    4. No worker to answer: the cloud where allowed, else nobody.
    5. Memory is short, and the cloud is allowed: the cloud.
    6. Loading the model takes longer than a request may wait, and than the cloud, which is allowed: the cloud.
    7. Every slot taken and the queue full: the cloud where allowed, else nobody.
    8. Pinned to the box: the box.
    9. The box.
    """
    elsewhere = Target.CLOUD if allowed.may_escalate else Target.NONE
    if allowed.locality is Locality.CLOUD_ONLY or not allowed.has_local:  # 1
        return _decide(Target.CLOUD, Reason.PINNED_CLOUD)
    if allowed.has_images:  # 2
        return _decide(Target.CLOUD, Reason.CAPABILITY)
    if allowed.keeps_author and allowed.may_escalate:  # 3
        return _decide(Target.CLOUD, Reason.KEPT_AUTHOR)
    if engine is None or (engine.state is not EngineState.READY and engine.load_wait_s is None):  # 4
        return _decide(elsewhere, Reason.LOCAL_UNAVAILABLE)
    if engine.host_pressure and allowed.may_escalate:  # 5
        return _decide(Target.CLOUD, Reason.HOST_PRESSURE)
    patience_s = load_patience_s(allowed)
    if patience_s is not None and engine.load_wait_s is not None and engine.load_wait_s > patience_s:  # 6
        return _decide(Target.CLOUD, Reason.LOCAL_UNAVAILABLE, threshold=patience_s)
    if in_flight >= engine.slots + allowed.queue:  # 7
        return _decide(elsewhere, Reason.QUEUE_FULL if allowed.may_escalate else Reason.REJECTED_BUSY)
    if allowed.is_kept_here:  # 8
        return _decide(Target.LOCAL, Reason.PINNED_LOCAL)
    return _decide(Target.LOCAL, Reason.WITHIN_BUDGET)  # 9


def load_patience_s(allowed: Terms) -> float | None:
    """How long a request may wait for a model to load; None, for as long as that takes, where nobody else answers."""
    if not allowed.may_escalate:
        return None
    ttft_s = max(allowed.ttft_s, allowed.outlook.ttft_s) if allowed.outlook else allowed.ttft_s
    return min(ttft_s, allowed.deadline_s or ttft_s)


def with_patience(allowed: Terms, *, elapsed_s: float) -> Terms:
    """The same for a local try that begins now: it may be as late as the cloud would have been, had it been asked.

    Leaving sooner would be leaving for something slower. Later, the local side has been overtaken by its own forecast.
    """
    if allowed.outlook is None:
        return allowed
    cloud_s = allowed.outlook.ttft_s
    return replace(allowed, ttft_s=max(allowed.ttft_s, elapsed_s + cloud_s), itl_s=max(allowed.itl_s, cloud_s))


def review_admission(  # noqa: PLR0913 - each is a measured number of its own
    allowed: Terms,
    engine: EngineSnapshot,
    request: Request,
    *,
    prompt_tokens: int,
    cached_tokens: int,
    elapsed_s: float,
    load_s: float = 0.0,
    answer_tokens: int | None = None,
) -> Decision:
    """Stay or leave, now that the prompt's length is known. Without a cloud to ask, or a measured rate, stay.

    ``elapsed_s`` is without ``load_s``, a cold load that came before: it counts for the request's deadline alone.
    ``answer_tokens``: so many will be decoded, where that is known better than from what the request allows.

    1. Prompt and the answer asked for do not fit the context.
    2. The first token would come too late, and the cloud's would come sooner.
    3. The whole answer would come after the request's deadline, and the cloud's would come sooner.
    """
    uncached = prompt_tokens - cached_tokens
    wait_s = predict_ttft_s(engine, uncached_tokens=uncached, cached_tokens=cached_tokens, learned=allowed.learned)
    ttft_s = None if wait_s is None else elapsed_s + wait_s
    cloud_s = None if allowed.outlook is None or not allowed.may_escalate else elapsed_s + allowed.outlook.ttft_s
    stay = Reason.PINNED_LOCAL if allowed.is_kept_here else Reason.WITHIN_BUDGET
    reason, threshold = stay, allowed.ttft_s
    if allowed.may_escalate:
        if request.max_tokens and prompt_tokens + request.max_tokens > engine.context_tokens:  # 1
            reason = Reason.CONTEXT_OVERFLOW
        elif ttft_s is not None and ttft_s > allowed.ttft_s and (cloud_s is None or cloud_s < ttft_s):  # 2
            reason = Reason.TTFT_PREDICTED
        elif _misses_deadline(
            allowed, engine, answer_tokens or request.max_tokens, None if ttft_s is None else ttft_s + load_s, elapsed_s
        ):  # 3
            reason, threshold = Reason.DEADLINE_PREDICTED, allowed.deadline_s or 0.0
    target = Target.LOCAL if reason is stay else Target.CLOUD
    return Decision(
        target=target,
        reason=reason,
        stage="review_admission",
        at_s=elapsed_s,
        predicted_ttft_s=ttft_s,
        threshold=None if ttft_s is None else threshold,
        cloud_ttft_s=cloud_s,
        speed=allowed.learned.speed,
    )


def _misses_deadline(
    allowed: Terms, engine: EngineSnapshot, answer_tokens: int | None, ttft_s: float | None, elapsed_s: float
) -> bool:
    if allowed.deadline_s is None or ttft_s is None:
        return False
    total_s = predict_total_s(engine, ttft_s=ttft_s, answer_tokens=answer_tokens)
    if total_s is None or total_s <= allowed.deadline_s:
        return False
    expected = answer_tokens or EXPECTED_ANSWER_TOKENS
    return allowed.outlook is None or elapsed_s + allowed.outlook.total_s(expected) < total_s


class Verdict(StrEnum):
    """What to do with a local answer on probation."""

    WAIT = "wait"
    KEEP = "keep"
    DEFER = "defer"


@dataclass(frozen=True, slots=True)
class Review:
    """A verdict with its reason and the confidence it was based on. ``early``: before there was enough to judge.

    ``threshold`` is what the confidence was held against.
    """

    verdict: Verdict
    reason: Reason = Reason.WITHIN_BUDGET
    confidence: float | None = None
    early: bool = False
    threshold: float | None = None


def review(seen: Observation, allowed: Terms) -> Review:
    """Judge a local answer on probation; called at every step and at every deadline (silence is evidence too).

    1. No token in time.
    2. Too long a gap between tokens.
    3. Not over, and it can no longer pass.
    4. Not over, and not enough of it to judge: wait.
    5. Finished without text, cut short of what was asked, or not the JSON that was asked for.
    6. Not trusted.
    7. Kept.
    """
    if not seen.started:
        late = seen.elapsed_s >= allowed.ttft_s  # 1
        return Review(Verdict.DEFER, Reason.TTFT_EXCEEDED) if late else Review(Verdict.WAIT)
    if not seen.finished and seen.silence_s >= allowed.itl_s:  # 2
        return Review(Verdict.DEFER, Reason.ITL_EXCEEDED, seen.confidence)
    is_judgeable = seen.finished or _judgeable(seen, allowed)
    if not is_judgeable and (why := _hopeless(seen, allowed)) is not None:  # 3
        return Review(Verdict.DEFER, why, seen.confidence, early=True)
    if not is_judgeable:
        return Review(Verdict.WAIT)  # 4
    if seen.finished and not seen.has_text:  # 5
        return Review(Verdict.DEFER, Reason.INVALID_OUTPUT, seen.confidence)
    if seen.finished and seen.cut_short:
        return Review(Verdict.DEFER, Reason.TRUNCATED, seen.confidence)
    if seen.finished and seen.malformed:
        return Review(Verdict.DEFER, Reason.INVALID_OUTPUT, seen.confidence)
    confidence = seen.confidence_of(_judged_tokens(seen, allowed))
    threshold = allowed.confidence if seen.standard is None else seen.standard
    if not is_trusted(confidence, threshold):  # 6
        return Review(Verdict.DEFER, Reason.LOW_CONFIDENCE, confidence, threshold=threshold)
    return Review(Verdict.KEEP, confidence=confidence, threshold=threshold)  # 7


def is_trusted(confidence: float | None, threshold: float) -> bool:
    """Whether an answer may be served for what it says; a threshold of 0 asks for nothing."""
    return threshold <= 0 or (confidence is not None and confidence >= threshold)


def _judged_tokens(seen: Observation, allowed: Terms) -> int | None:
    """How many tokens of each choice decide, None: all. JSON and calls stand or fall as a whole."""
    is_guarded = allowed.release is Release.GUARDED and not seen.structured
    return allowed.hold_tokens if is_guarded else None


def _judgeable(seen: Observation, allowed: Terms) -> bool:
    judged_tokens = _judged_tokens(seen, allowed)
    return judged_tokens is not None and seen.held_tokens >= judged_tokens


def _hopeless(seen: Observation, allowed: Terms) -> Reason | None:
    """Why an answer that goes on cannot pass any more; None where it still may.

    1. It cannot become the JSON that was asked for.
    2. It says the same over and over.
    3. Were every further token certain, its score would stay below the threshold.
    4. At its own pace it misses the deadline, and the cloud would be sooner.
    """
    if seen.malformed or seen.looping:  # 1, 2
        return Reason.INVALID_OUTPUT
    if allowed.confidence > 0 and seen.best_confidence(_judged_tokens(seen, allowed)) < allowed.confidence:  # 3
        return Reason.LOW_CONFIDENCE
    total_s = seen.expected_total_s
    if allowed.deadline_s is None or total_s is None or total_s <= allowed.deadline_s:
        return None
    tokens = seen.asked_tokens or EXPECTED_ANSWER_TOKENS
    cloud_s = seen.elapsed_s + seen.load_s + allowed.outlook.total_s(tokens) if allowed.outlook else 0.0
    return Reason.DEADLINE_PREDICTED if cloud_s < total_s else None  # 4


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
