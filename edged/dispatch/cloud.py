"""The cloud try: the route's upstreams in order, each within budget, until one gives a first token.

The one owner of retries: nothing below it asks twice. Every further call of a request, to the next upstream or to the
same one without a parameter it refused, is taken from the retry budget and lies within the request's deadline.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from edged.config import RetriesConfig, RouteConfig
from edged.core import NO_RETRY, Chunk, Decision, Outcome, Reason, Target
from edged.dispatch.local import Commit, nothing
from edged.dispatch.money import Money, limited
from edged.dispatch.trace import AttemptTrace, Trace
from edged.dispatch.upstreams import Upstreams
from edged.dispatch.veil import Veil, restored
from edged.errors import (
    EdgedError,
    InvalidRequest,
    ParameterRefused,
    Unsupported,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from edged.privacy.rewrite import Redacted
from edged.routing.policy import Terms
from edged.upstream.client import UpstreamClient

INVALID_ANSWER = "invalid_answer"


@dataclass(frozen=True, slots=True)
class CloudFailure:
    """No upstream answered; ``error`` says why, ``reason`` is what a local answer in its place is marked with.

    ``called``: the last one was asked.
    """

    reason: Reason
    error: EdgedError
    called: bool = False


class Cloud:
    """The upstreams, how they are, and the money that calls to them cost."""

    def __init__(
        self, client: UpstreamClient, money: Money, *, retries: RetriesConfig | None = None, veil: Veil | None = None
    ) -> None:
        self._client = client
        self._veil = veil
        self.money = money
        self.upstreams = Upstreams(client, retries=retries)

    def __repr__(self) -> str:
        return f"Cloud({self._client!r}, {self.money!r})"

    async def attempt(self, trace: Trace, route: RouteConfig, allowed: Terms) -> Commit | CloudFailure:
        """Ask the upstreams in order; one that fails before its first token is skipped.

        An answer that is not streamed is read to its end first, so that its author may change until then.
        """
        outcome = await self._in_order(trace, route, allowed)
        if isinstance(outcome, CloudFailure) and self.is_away(allowed):
            trace.note_offline(Target.NONE)
        return outcome

    def is_away(self, allowed: Terms) -> bool:
        """It is known that none of the upstreams this request may go to can be reached."""
        return bool(allowed.upstreams) and self.upstreams.unreachable(allowed.upstreams)

    async def _in_order(self, trace: Trace, route: RouteConfig, allowed: Terms) -> Commit | CloudFailure:
        """Ask one after the other while the retry budget and the deadline allow."""
        names = deque(self.upstreams.ready(allowed.upstreams))
        why_not = self.upstreams.why_not(allowed.upstreams)
        failure = CloudFailure(Reason.CLOUD_UNAVAILABLE, why_not or _none_ready(route))
        if names:
            self.upstreams.count_request()
        called: set[str] = set()
        while names:
            name = names.popleft()
            if called and self.upstreams.refusal(name) is not None:
                continue  # found wanting since
            if not self._has_time(trace, allowed) or (called and not self._may_retry(trace)):
                break
            outcome = await self._one(trace, route, name, allowed)
            if isinstance(outcome, Commit):
                return outcome
            error = outcome.error
            if not isinstance(error, InvalidRequest) or (not called and why_not is None):
                failure = outcome  # what one upstream cannot do says nothing where another one only failed
            if isinstance(error, ParameterRefused):  # each teaches one more parameter, so this ends
                names.appendleft(name)
            if isinstance(error, UpstreamError) and not error.reached:
                names = deque(other for other in names if not other.startswith(f"{error.upstream}/"))
            if outcome.called:
                called.add(name)
        return failure

    def _has_time(self, trace: Trace, allowed: Terms) -> bool:
        return allowed.deadline_s is None or trace.elapsed_s < allowed.deadline_s

    def _may_retry(self, trace: Trace) -> bool:
        """Leave for one more call of this request; where there is none, the record says so."""
        if self.upstreams.may_retry():
            return True
        trace.decide(Decision(target=Target.NONE, reason=trace.reason, stage=NO_RETRY))
        return False

    async def _one(self, trace: Trace, route: RouteConfig, name: str, allowed: Terms) -> Commit | CloudFailure:
        """One call within money and deadline; what it says of the upstream is noted."""
        call = self.upstreams.begin(name)
        try:
            redacted = await self._redacted(trace, name)
            attempt = await self._reserved(trace, route, name, allowed, redacted)
            if isinstance(attempt, EdgedError):
                self.upstreams.drop(call)
                return CloudFailure(Reason.BUDGET_EXHAUSTED, attempt)
            outcome = await self._ask(trace, attempt, allowed.deadline_s)
        except Unsupported as exc:  # nobody but the box may see it then
            self.upstreams.drop(call)
            return CloudFailure(Reason.PRIVATE, exc)
        except BaseException:
            self.upstreams.drop(call)
            raise
        if isinstance(outcome, Commit):
            self.upstreams.end(call, None)
            return outcome
        self.upstreams.end(call, outcome)
        self.money.settle(trace)
        return CloudFailure(Reason.CLOUD_UNAVAILABLE, outcome, called=attempt in trace.attempts)

    async def _redacted(self, trace: Trace, name: str) -> Redacted | None:
        """What this upstream may see of the request in its place; None where it may see all of it.

        Raises: Unsupported where that cannot be made.
        """
        if self._veil is None or not self._veil.is_needed(trace.request, name):
            return None
        if trace.redacted is None:
            trace.redacted = await self._veil.over(trace.request)
        return trace.redacted

    async def _reserved(
        self, trace: Trace, route: RouteConfig, name: str, allowed: Terms, redacted: Redacted | None
    ) -> AttemptTrace | EdgedError:
        """An attempt whose worst case is set aside; why not, where there is no money for it."""
        hold = await self.money.reserve(trace, route, name, allowed, sent=redacted.request if redacted else None)
        if isinstance(hold, EdgedError):
            return hold
        upstream, _, model = name.partition("/")
        attempt = trace.attempt(Target.CLOUD, backend=upstream, model=model)
        attempt.hold, attempt.redacted = hold, redacted
        return attempt

    def close(self, trace: Trace) -> None:
        """The request is over: a cloud answer that broke off is noted, and what is over is priced."""
        author = trace.author
        if author is not None and author.target is Target.CLOUD and author.outcome is Outcome.FAILED:
            self.upstreams.broke_off(author.public_name)
        self.money.settle(trace)

    async def _ask(self, trace: Trace, attempt: AttemptTrace, deadline_s: float | None) -> Commit | EdgedError:
        """Wait for the first token no longer than the request's deadline allows."""
        left_s = None if deadline_s is None else max(0.0, deadline_s - trace.elapsed_s)
        try:
            async with asyncio.timeout(left_s):
                return await self._first_token(trace, attempt)
        except TimeoutError:
            attempt.end(Outcome.FAILED, "deadline_exceeded")
            return _too_late(attempt.backend)

    async def _first_token(self, trace: Trace, attempt: AttemptTrace) -> Commit | EdgedError:
        """Wait for the first token of one upstream, or for all of them."""
        request = limited(attempt.sent(trace.request), attempt)
        stream = self._client.stream(request, attempt.backend, attempt.model)
        if attempt.redacted is not None:
            stream = restored(stream, attempt.redacted)
        held: list[Chunk] = []
        try:
            async for chunk in stream:
                held.append(chunk)
                attempt.see(chunk)
                if attempt.first_token_s is not None and trace.request.stream:
                    return Commit(attempt, held, stream)
        except UpstreamError as exc:
            attempt.may_cost = exc.may_cost or attempt.first_token_s is not None
            attempt.end(Outcome.FAILED, exc.code)
            return exc
        except InvalidRequest as exc:  # refused by ourselves, before any call
            self.money.release(attempt)
            trace.attempts.remove(attempt)
            return exc
        except BaseException:
            await stream.aclose()
            raise
        if attempt.first_token_s is not None:
            if trace.accepts(attempt):
                return Commit(attempt, held, nothing())
            attempt.end(Outcome.FAILED, INVALID_ANSWER)
            text = f"the upstream {attempt.backend!r} sent an answer outside the options that it was given"
            return UpstreamRejected(text, upstream=attempt.backend, code=INVALID_ANSWER)
        attempt.end(Outcome.FAILED, "empty_answer")
        return UpstreamError("the upstream sent no answer", upstream=attempt.backend, code="empty_answer")


def _none_ready(route: RouteConfig) -> EdgedError:
    return UpstreamUnavailable(f"no upstream of the route {route.name!r} answered", upstream="")


def _too_late(upstream: str) -> EdgedError:
    what = f"the request's deadline passed before the upstream {upstream!r} answered"
    return UpstreamTimeout(what, upstream=upstream, code="deadline_exceeded")
