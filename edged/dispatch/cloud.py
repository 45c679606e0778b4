"""The cloud try: the route's upstreams in order, each within budget, until one gives a first token."""

from collections.abc import Callable
from dataclasses import dataclass

from edged.config import Config, RouteConfig
from edged.core import Chunk, Locality, Outcome, Reason, Target, Usage
from edged.dispatch.local import Commit, nothing
from edged.dispatch.trace import AttemptTrace, Trace
from edged.errors import (
    BudgetExhausted,
    EdgedError,
    InvalidRequest,
    UpstreamBusy,
    UpstreamError,
    UpstreamUnavailable,
)
from edged.routing.budget import Budget
from edged.routing.policy import Terms
from edged.upstream import pricing
from edged.upstream.client import UpstreamClient

_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class CloudFailure:
    """No upstream answered; ``error`` says why, ``reason`` is what a local answer in its place is marked with."""

    reason: Reason
    error: EdgedError


class Cloud:
    """The upstreams with their prices and each route's budget."""

    def __init__(
        self,
        config: Config,
        client: UpstreamClient,
        *,
        spent_uusd: Callable[[str], int],
        wall_clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._prices = pricing.PriceTable(config.upstreams)
        self._context_tokens = {f"{u.name}/{m.name}": m.context_tokens for u in config.upstreams for m in u.models}
        self._wall_clock = wall_clock
        self._budgets = {route.name: _budget(route, self._day(), spent_uusd) for route in config.routes}

    def __repr__(self) -> str:
        return f"Cloud({self._client!r}, budgets={self._budgets})"

    async def attempt(self, trace: Trace, route: RouteConfig, allowed: Terms) -> Commit | CloudFailure:
        """Ask the upstreams in order; one that fails before its first token is skipped.

        An answer that is not streamed is read to its end first, so that its author may change until then.
        """
        assert allowed.locality is not Locality.LOCAL_ONLY, "local_only never leaves the box"
        failure = CloudFailure(Reason.CLOUD_UNAVAILABLE, _none_ready(route))
        for name in route.cloud:
            upstream, _, model = name.partition("/")
            cooldown_s = self._client.cooldown_s(upstream, model)
            if cooldown_s > 0:
                failure = _busy(upstream, cooldown_s)
                continue
            reserved_uusd = self._reserve(trace, route, name, allowed)
            if reserved_uusd is None:
                failure = _exhausted(route)
                continue
            attempt = trace.attempt(Target.CLOUD, backend=upstream, model=model)
            attempt.reserved_uusd = reserved_uusd
            outcome = await self._ask(trace, attempt)
            if isinstance(outcome, Commit):
                return outcome
            self.settle(trace)
            failure = CloudFailure(Reason.CLOUD_UNAVAILABLE, outcome)
        return failure

    def settle(self, trace: Trace) -> None:
        """Price every cloud attempt that is over, once, and free what was reserved."""
        for attempt in trace.attempts:
            if attempt.target is Target.CLOUD and attempt.outcome is not None and not attempt.settled:
                self._settle(trace, attempt)

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
            self._release(trace, attempt)
            trace.attempts.remove(attempt)
            return exc
        except BaseException:
            await stream.aclose()
            raise
        if attempt.first_token_s is not None:
            return Commit(attempt, held, nothing())
        attempt.end(Outcome.FAILED, "empty_answer")
        return UpstreamError("the upstream sent no answer", upstream=attempt.backend, code="empty_answer")

    def _reserve(self, trace: Trace, route: RouteConfig, name: str, allowed: Terms) -> int | None:
        """Set the worst case of this call aside; None where route or request cannot afford it."""
        upstream, _, model = name.partition("/")
        request = trace.request
        prompt_tokens = pricing.estimate_prompt_tokens(request)
        max_tokens = request.max_tokens or max(1, self._context_tokens[name] - prompt_tokens)
        worst_uusd = self._prices.worst_case_uusd(
            upstream, model, prompt_tokens=prompt_tokens, max_tokens=max_tokens, n=request.n
        )
        if allowed.max_cost_uusd is not None and worst_uusd > allowed.max_cost_uusd:
            return None
        budget = self._budgets.get(route.name)
        if budget is not None and not budget.reserve(worst_uusd, day=self._day()):
            return None
        return worst_uusd

    def _settle(self, trace: Trace, attempt: AttemptTrace) -> None:
        """The provider's own figures where it gave them, else the price table's and an estimate, marked as such."""
        if attempt.usage is None:
            attempt.usage = pricing.estimate_usage(trace.request, attempt.all_text) if attempt.may_cost else Usage()
        if attempt.cost_uusd is None:
            attempt.cost_uusd = self._prices.cost_uusd(attempt.backend, attempt.model, attempt.usage)
            attempt.cost_estimated = attempt.usage.estimated
        self._release(trace, attempt)

    def _release(self, trace: Trace, attempt: AttemptTrace) -> None:
        """Give the reservation back, less what was spent."""
        budget = self._budgets.get(trace.route or "")
        if budget is not None:
            budget.settle(attempt.reserved_uusd, attempt.cost_uusd or 0)
        attempt.settled = True

    def _day(self) -> int:
        return int(self._wall_clock() // _SECONDS_PER_DAY)


def _budget(route: RouteConfig, day: int, spent_uusd: Callable[[str], int]) -> Budget:
    limit_usd = route.budget.usd_per_day
    limit_uusd = None if limit_usd is None else pricing.usd_to_uusd(limit_usd)
    return Budget(limit_uusd, day=day, spent_uusd=spent_uusd(route.name))


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
