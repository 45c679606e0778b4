"""Money around a cloud call: the worst case is reserved before it, the real cost settled after it."""

from collections.abc import Callable

from edged.config import Config, RouteConfig
from edged.core import Target, Usage
from edged.dispatch.trace import AttemptTrace, Trace
from edged.routing.budget import Budget
from edged.routing.policy import Terms
from edged.upstream import pricing

_SECONDS_PER_DAY = 86_400


class Money:
    """The price table and each route's budget."""

    def __init__(self, config: Config, *, spent_uusd: Callable[[str], int], wall_clock: Callable[[], float]) -> None:
        self._prices = pricing.PriceTable(config.upstreams)
        self._context_tokens = {f"{u.name}/{m.name}": m.context_tokens for u in config.upstreams for m in u.models}
        self._wall_clock = wall_clock
        self.budgets = {route.name: _budget(route, self._day(), spent_uusd) for route in config.routes}

    def __repr__(self) -> str:
        return f"Money(budgets={self.budgets})"

    def reserve(self, trace: Trace, route: RouteConfig, name: str, allowed: Terms) -> int | None:
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
        budget = self.budgets.get(route.name)
        if budget is not None and not budget.reserve(worst_uusd, day=self._day()):
            return None
        return worst_uusd

    def settle(self, trace: Trace) -> None:
        """Price every cloud attempt that is over, once, and free what was reserved."""
        for attempt in trace.attempts:
            if attempt.target is Target.CLOUD and attempt.outcome is not None and not attempt.settled:
                self._settle(trace, attempt)

    def release(self, trace: Trace, attempt: AttemptTrace) -> None:
        """Give the reservation back, less what was spent."""
        budget = self.budgets.get(trace.route or "")
        if budget is not None:
            budget.settle(attempt.reserved_uusd, attempt.cost_uusd or 0)
        attempt.settled = True

    def _settle(self, trace: Trace, attempt: AttemptTrace) -> None:
        """The provider's own figures where it gave them, else the price table's and an estimate, marked as such."""
        if attempt.usage is None:
            attempt.usage = pricing.estimate_usage(trace.request, attempt.all_text) if attempt.may_cost else Usage()
        if attempt.cost_uusd is None:
            attempt.cost_uusd = self._prices.cost_uusd(attempt.backend, attempt.model, attempt.usage)
            attempt.cost_estimated = attempt.usage.estimated
        self.release(trace, attempt)

    def _day(self) -> int:
        return int(self._wall_clock() // _SECONDS_PER_DAY)


def _budget(route: RouteConfig, day: int, spent_uusd: Callable[[str], int]) -> Budget:
    limit_usd = route.budget.usd_per_day
    limit_uusd = None if limit_usd is None else pricing.usd_to_uusd(limit_usd)
    return Budget(limit_uusd, day=day, spent_uusd=spent_uusd(route.name))
