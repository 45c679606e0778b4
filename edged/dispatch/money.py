"""Money around a cloud call: the worst case is reserved and noted before it, the real cost settled after it."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Protocol

from edged.config import Config, RouteConfig, UpstreamModelConfig
from edged.core import BudgetSnapshot, DayMark, KeptMoney, Request, Reservation, Scope, Target, Usage
from edged.dispatch.trace import AttemptTrace, Trace
from edged.errors import BudgetExhausted, EdgedError, SpendUnrecorded
from edged.routing.budget import EVERYBODY, Account, Budgets, Hold
from edged.routing.days import Days, utc_date
from edged.routing.policy import Terms
from edged.upstream import pricing

log = logging.getLogger(__name__)

_SYNC_S = 1.0
_UNRECORDED_RETRY_S = 30.0
_FIRST_DAY = date(1970, 1, 1).toordinal()
_LEAST_OUTPUT_TOKENS = 256
_NOTHING = KeptMoney()
Kept = Callable[[bool], None]


class Journal(Protocol):
    """Where promised calls and standing budgets are noted; ``ledger.Ledger`` is one."""

    @property
    def is_failing(self) -> bool: ...

    def promise(self, reservation: Reservation, mark: DayMark, kept: Kept | None = None) -> None: ...

    def keep(self, budgets: tuple[BudgetSnapshot, ...], mark: DayMark, *, closed: tuple[str, ...] = ()) -> None: ...


class NoJournal:
    """Money that is forgotten with the process."""

    is_failing = False

    def promise(self, _reservation: Reservation, _mark: DayMark, kept: Kept | None = None) -> None:
        if kept is not None:
            kept(True)

    def keep(self, budgets: tuple[BudgetSnapshot, ...], mark: DayMark, *, closed: tuple[str, ...] = ()) -> None:
        """Nothing is kept."""


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clocks:
    """What the wall shows, and a clock that only runs, sleep included."""

    wall_s: Callable[[], float] = time.time
    elapsed_s: Callable[[], float] = _since_boot_s


class Money:
    """The price table and every budget. ``kept`` is what an earlier run left; None means that it cannot be known."""

    def __init__(
        self,
        config: Config,
        *,
        journal: Journal | None = None,
        kept: KeptMoney | None = _NOTHING,
        clocks: Clocks = Clocks(),
    ) -> None:
        self._prices = pricing.PriceTable(config.upstreams)
        self._models = {f"{u.name}/{m.name}": m for u in config.upstreams for m in u.models}
        self._serves_unrecorded = config.budget.when_ledger_fails == "serve"
        self._journal = journal or NoJournal()
        self._clocks = clocks
        self._promises = 0
        self._accounts_of: dict[tuple[str, str], tuple[Account, ...]] = {}
        self._run = uuid.uuid4().hex[:16]
        self.budgets = Budgets(_limits(config))
        self._warn_of_old_prices(config)
        date_of = utc_date if config.budget.day_starts == "utc" else _local_date
        mark = None if kept is None else kept.mark
        self._days = Days(wall_s=clocks.wall_s(), elapsed_s=clocks.elapsed_s(), mark=mark, date_of=date_of)
        self._take_over(kept)

    def __repr__(self) -> str:
        return f"Money({self._days!r}, {self.budgets!r})"

    def snapshot(self) -> tuple[BudgetSnapshot, ...]:
        """Every budget as it stands today."""
        self._look()
        return self.budgets.snapshot()

    async def reserve(
        self, trace: Trace, route: RouteConfig, name: str, allowed: Terms, *, sent: Request | None = None
    ) -> Hold | EdgedError:
        """Set the worst case of this call aside, in every budget or in none; else the error that says why not.

        Where a limit applies, the promise is on disk before this returns.
        """
        self._look()
        hold = self._hold(sent or trace.request, route, name)
        if allowed.max_cost_uusd is not None and hold.amount_uusd > allowed.max_cost_uusd:
            return BudgetExhausted("edged.max_cost_usd does not allow this call", param="edged.max_cost_usd")
        is_limited = hold.amount_uusd > 0 and self.budgets.is_limited(hold.accounts)
        if is_limited and self._journal.is_failing and not self._serves_unrecorded:
            return _unrecorded()
        if (full := self.budgets.reserve(hold.accounts, hold.amount_uusd)) is not None:
            return self._exhausted(full, hold)
        if is_limited and not self._journal.is_failing:
            return await self._promised(hold)
        self._journal.promise(hold.reservation, self._mark())
        return hold

    def settle(self, trace: Trace) -> None:
        """Price every cloud attempt that is over, once, and free what was reserved."""
        for attempt in trace.attempts:
            if attempt.target is Target.CLOUD and attempt.outcome is not None and not attempt.settled:
                self._price(trace, attempt)
                self.release(attempt)

    def release(self, attempt: AttemptTrace) -> None:
        """Give the reservation back, less what was spent."""
        if attempt.hold is not None and not attempt.settled:
            self._close(attempt.hold, attempt.cost_uusd or 0, estimated=attempt.cost_estimated)
        attempt.settled = True

    def _warn_of_old_prices(self, config: Config) -> None:
        today = datetime.fromtimestamp(self._clocks.wall_s(), UTC).date()
        after_days = config.budget.prices_stale_after_days
        for name, age_days in pricing.stale_prices(config.upstreams, today=today, after_days=after_days):
            log.warning("model=%s prices were read %d days ago: spend and budgets may be wrong", name, age_days)

    # -- before the call ---------------------------------------------------------------------------------------------

    def _hold(self, request: Request, route: RouteConfig, name: str) -> Hold:
        upstream, _, model = name.partition("/")
        prompt_tokens = pricing.estimate_prompt_tokens(request)
        max_tokens = _output_limit(request, self._models[name], prompt_tokens)
        worst_uusd = self._prices.worst_case_uusd(
            upstream, model, prompt_tokens=prompt_tokens, max_tokens=max_tokens, n=request.n
        )
        self._promises += 1
        reservation = Reservation(
            id=f"{self._run}-{self._promises}",
            request_id=request.id,
            upstream=upstream,
            model=model,
            route=route.name,
            tenant=request.tenant,
            amount_uusd=worst_uusd,
        )
        return Hold(reservation, self._accounts(reservation), max_tokens)

    def _accounts(self, reservation: Reservation) -> tuple[Account, ...]:
        whose = reservation.route, reservation.tenant
        if whose not in self._accounts_of:
            own = Account(Scope.ROUTE, reservation.route), Account(Scope.KEY, reservation.tenant)
            self._accounts_of[whose] = self.budgets.known((EVERYBODY, *own))
        return self._accounts_of[whose]

    async def _promised(self, hold: Hold) -> Hold | EdgedError:
        """Wait until the promise is on disk, as long as a disk may take; without it the call is not made."""
        loop = asyncio.get_running_loop()
        noted: asyncio.Future[bool] = loop.create_future()

        def told(kept: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(_answer, noted, kept)

        self._journal.promise(hold.reservation, self._mark(), told)
        try:
            async with asyncio.timeout(_SYNC_S):
                kept = await noted
        except TimeoutError:
            kept = False
        except BaseException:
            self._close(hold, 0)
            raise
        if kept or self._serves_unrecorded:
            return hold
        self._close(hold, 0)
        return _unrecorded()

    def _exhausted(self, full: Account, hold: Hold) -> BudgetExhausted:
        budget = self.budgets[full]
        what = f"today's cloud budget of {full}"
        if budget.limit_uusd is not None and hold.amount_uusd > budget.limit_uusd:
            message = f"this call alone could cost more than {what}: ask for fewer max_tokens"
        else:
            message = f"{what} does not allow this call any more"
        left_s = self._days.left_s(wall_s=self._clocks.wall_s(), elapsed_s=self._clocks.elapsed_s())
        return BudgetExhausted(message, retry_after_s=left_s)

    # -- after the call ----------------------------------------------------------------------------------------------

    def _price(self, trace: Trace, attempt: AttemptTrace) -> None:
        """The provider's own figure where it gave one, else the price table's; marked where the tokens are an estimate.

        A provider's zero is not believed where tokens have a price.
        """
        attempt.usage = _usage(attempt.sent(trace.request), attempt)
        computed_uusd = self._prices.cost_uusd(attempt.backend, attempt.model, attempt.usage)
        attempt.computed_cost_uusd = computed_uusd
        attempt.cost_uusd = attempt.provider_cost_uusd or computed_uusd
        attempt.cost_estimated = attempt.usage.estimated and not attempt.provider_cost_uusd

    def _close(self, hold: Hold, cost_uusd: int, *, estimated: bool = False) -> None:
        self._look()
        self.budgets.settle(hold.accounts, hold.amount_uusd, cost_uusd, estimated=estimated)
        self._journal.keep(self.budgets.snapshot(hold.accounts), self._mark(), closed=(hold.reservation.id,))

    # -- days --------------------------------------------------------------------------------------------------------

    def _take_over(self, kept: KeptMoney | None) -> None:
        """Go on from what an earlier run spent; its calls that never ended are spent in full, by estimate."""
        known = kept or KeptMoney()
        if kept is None:
            self.budgets.exhaust()
        if known.mark is not None and self._days.number == known.mark.number:
            for old in known.spent:
                self.budgets.restore(old)
        for reservation in known.open:
            accounts = self._accounts(reservation)
            self.budgets.settle(accounts, 0, reservation.amount_uusd, estimated=True)
            log.warning(
                "request=%s was cut off while %s/%s answered: its worst case of %d uusd counts as spent",
                reservation.request_id,
                reservation.upstream,
                reservation.model,
                reservation.amount_uusd,
            )
        self._journal.keep(self.budgets.snapshot(), self._mark(), closed=tuple(one.id for one in known.open))

    def _look(self) -> None:
        if self._days.look(wall_s=self._clocks.wall_s(), elapsed_s=self._clocks.elapsed_s()):
            self.budgets.new_day()
            self._journal.keep(self.budgets.snapshot(), self._mark())
            log.info("a new day of budgets begins: %r", self._days)

    def _mark(self) -> DayMark:
        return self._days.mark(wall_s=self._clocks.wall_s(), elapsed_s=self._clocks.elapsed_s())


def limited(request: Request, attempt: AttemptTrace) -> Request:
    """The request as the upstream gets it: with the output limit that was paid for."""
    return request if attempt.hold is None else replace(request, max_tokens=attempt.hold.max_tokens)


def _output_limit(request: Request, model: UpstreamModelConfig, prompt_tokens: int) -> int:
    """How many tokens a choice may have: what is asked, the model's ceiling, and unasked no more than the context.

    The prompt is only estimated, and high, so what seems left of the context does not cut an answer to nothing.
    """
    if request.max_tokens is not None:
        return min(request.max_tokens, model.max_output_tokens)
    left = max(model.context_tokens - prompt_tokens, _LEAST_OUTPUT_TOKENS)
    return min(model.max_output_tokens, left)


def _usage(request: Request, attempt: AttemptTrace) -> Usage:
    """The provider's count, never less than what was seen of an answer that broke off; without one an estimate."""
    if attempt.usage is None:
        return pricing.estimate_usage(request, attempt.all_text) if attempt.may_cost else Usage()
    if attempt.finished:
        return attempt.usage
    seen = pricing.estimate_tokens(attempt.all_text)
    return replace(attempt.usage, completion_tokens=max(seen, attempt.usage.completion_tokens), estimated=True)


def _answer(noted: "asyncio.Future[bool]", kept: bool) -> None:
    if not noted.done():
        noted.set_result(kept)


def _unrecorded() -> SpendUnrecorded:
    return SpendUnrecorded(
        "what the cloud costs cannot be recorded now, so it is not asked", retry_after_s=_UNRECORDED_RETRY_S
    )


def _local_date(wall_s: float) -> int:
    try:
        return datetime.fromtimestamp(wall_s).astimezone().toordinal() - _FIRST_DAY
    except (OverflowError, ValueError, OSError):
        return utc_date(wall_s)


def _limits(config: Config) -> dict[Account, int | None]:
    limits = {EVERYBODY: config.budget.usd_per_day}
    limits |= {Account(Scope.ROUTE, route.name): route.budget.usd_per_day for route in config.routes}
    limits |= {Account(Scope.KEY, key.name): key.usd_per_day for key in config.api_keys}
    return {account: None if usd is None else pricing.usd_to_uusd(usd) for account, usd in limits.items()}
