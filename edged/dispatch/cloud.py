"""The cloud try: the route's upstreams in order, each within budget, until one gives a first token."""

from dataclasses import dataclass

from edged.config import RouteConfig
from edged.core import Chunk, Outcome, Reason, Target
from edged.dispatch.local import Commit, nothing
from edged.dispatch.money import Money
from edged.dispatch.trace import AttemptTrace, Trace
from edged.errors import (
    BudgetExhausted,
    EdgedError,
    InvalidRequest,
    UpstreamBusy,
    UpstreamError,
    UpstreamUnavailable,
)
from edged.routing.policy import Terms
from edged.upstream.client import UpstreamClient


@dataclass(frozen=True, slots=True)
class CloudFailure:
    """No upstream answered; ``error`` says why, ``reason`` is what a local answer in its place is marked with."""

    reason: Reason
    error: EdgedError


class Cloud:
    """The upstreams, and the money that calls to them cost."""

    def __init__(self, client: UpstreamClient, money: Money) -> None:
        self._client = client
        self.money = money

    def __repr__(self) -> str:
        return f"Cloud({self._client!r}, {self.money!r})"

    async def attempt(self, trace: Trace, route: RouteConfig, allowed: Terms) -> Commit | CloudFailure:
        """Ask the upstreams in order; one that fails before its first token is skipped.

        An answer that is not streamed is read to its end first, so that its author may change until then.
        """
        failure = CloudFailure(Reason.CLOUD_UNAVAILABLE, _none_ready(route))
        for name in allowed.upstreams:
            upstream, _, model = name.partition("/")
            cooldown_s = self._client.cooldown_s(upstream, model)
            if cooldown_s > 0:
                failure = _busy(upstream, cooldown_s)
                continue
            reserved_uusd = self.money.reserve(trace, route, name, allowed)
            if reserved_uusd is None:
                failure = _exhausted(route)
                continue
            attempt = trace.attempt(Target.CLOUD, backend=upstream, model=model)
            attempt.reserved_uusd = reserved_uusd
            outcome = await self._ask(trace, attempt)
            if isinstance(outcome, Commit):
                return outcome
            self.money.settle(trace)
            failure = CloudFailure(Reason.CLOUD_UNAVAILABLE, outcome)
        return failure

    async def _ask(self, trace: Trace, attempt: AttemptTrace) -> Commit | EdgedError:
        """Wait for the first token of one upstream, or for all of them."""
        stream = self._client.stream(trace.request, attempt.backend, attempt.model)
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
            self.money.release(trace, attempt)
            trace.attempts.remove(attempt)
            return exc
        except BaseException:
            await stream.aclose()
            raise
        if attempt.first_token_s is not None:
            return Commit(attempt, held, nothing())
        attempt.end(Outcome.FAILED, "empty_answer")
        return UpstreamError("the upstream sent no answer", upstream=attempt.backend, code="empty_answer")


def _none_ready(route: RouteConfig) -> EdgedError:
    return UpstreamUnavailable(f"no upstream of the route {route.name!r} answered", upstream="")


def _busy(upstream: str, cooldown_s: float) -> CloudFailure:
    error = UpstreamBusy(
        f"the upstream {upstream!r} asked to be left alone for {cooldown_s:.1f} s",
        upstream=upstream,
        retry_after_s=cooldown_s,
    )
    return CloudFailure(Reason.CLOUD_UNAVAILABLE, error)


def _exhausted(route: RouteConfig) -> CloudFailure:
    message = f"the budget of the route {route.name!r}, or max_cost_usd, does not allow this call"
    return CloudFailure(Reason.BUDGET_EXHAUSTED, BudgetExhausted(message, retry_after_s=3600))
