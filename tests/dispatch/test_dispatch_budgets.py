"""Budgets of everybody, routes and keys around real calls, kept in a real ledger: none forgotten, none overshot."""

import asyncio
import sqlite3
import threading
import time
from contextlib import contextmanager

import pytest
from builders import a_config, a_request, a_route, the_terms
from dispatch_builders import DAY_S, UNSURE, a_box, run
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core import KeptMoney, Outcome, Reason, Scope, Status, Target, Usage
from edged.dispatch.money import Clocks, Money, NoJournal, limited
from edged.dispatch.trace import Trace
from edged.errors import BudgetExhausted, EdgedError, ModelNotFound, SpendUnrecorded
from edged.ledger import Ledger, Tuning
from edged.routing.budget import EVERYBODY, Account
from edged.routing.names import resolve
from edged.testing import Reply
from edged.testing.local import Script

NOON = 20_000 * DAY_S + DAY_S / 2
PINNED = "cloud/scripted-model"
KEYS = [
    {"name": "kitchen", "key": "env:KITCHEN_KEY", "usd_per_day": 0.001},
    {"name": "porch", "key": "env:PORCH_KEY", "routes": ["auto"]},
    {"name": "diary", "key": "env:DIARY_KEY", "locality": "local_only"},
]
USED = {"prompt_tokens": 100, "completion_tokens": 50}
"""200 micro-dollars: a dollar per million in, two out."""


@contextmanager
def a_ledger(path, **tuning):
    ledger = Ledger.open(path, keep_days=30, store_text=False, tuning=Tuning(commit_every_s=0.02, **tuning))
    try:
        yield ledger
    finally:
        ledger.close(10)


def deferring(box, **reply):
    box.engine.default = Script(logprob=UNSURE)
    box.up.default = Reply(text="yes", usage=USED, **reply)
    return box


def stands(box, scope, name=""):
    """(spent, reserved) of a budget."""
    (found,) = [b for b in box.cloud.money.snapshot() if (b.scope, b.name) == (scope, name)]
    return found.spent_uusd, found.reserved_uusd


# -- whose money -----------------------------------------------------------------------------------------------------


def test_a_call_counts_for_everybody_its_route_and_its_key():
    """The three stand at the same sum; another key's stays where it was."""

    async def main():
        async with a_box(sections={"budget": {"usd_per_day": 1}, "api_key": KEYS}) as box:
            await deferring(box).ask(tenant="kitchen", max_tokens=50)
            assert stands(box, Scope.ALL) == stands(box, Scope.ROUTE, "auto") == (200, 0)
            assert stands(box, Scope.KEY, "kitchen") == (200, 0)
            assert stands(box, Scope.KEY, "porch") == (0, 0)

    run(main)


@pytest.mark.parametrize("whose", [{"budget": {"usd_per_day": 0.001}}, {"api_key": KEYS}], ids=["everybody", "key"])
def test_a_pinned_upstream_model_is_within_budget_too(whose):
    """It has no route's budget, but the key's and everybody's: then a 429 that says when to come back."""

    async def main():
        async with a_box(sections=whose, clock=lambda: NOON) as box:
            deferring(box)
            seen = [await box.ask(model=PINNED, tenant="kitchen", max_tokens=50) for _ in range(8)]
            paid = [one for one in seen if one.error is None]
            assert len(paid) == 5
            assert all(isinstance(one.error, BudgetExhausted) for one in seen[len(paid) :])
            assert seen[-1].error.status == 429
            assert abs(seen[-1].error.retry_after_s - DAY_S / 2) < 2
            assert stands(box, Scope.ALL) == (len(paid) * 200, 0)
            assert box.records[-1].status is Status.REJECTED

    run(main)


def test_a_reservation_is_taken_from_all_or_from_none():
    """A key that is out of money leaves the route's and everybody's untouched."""

    async def main():
        sections = {"budget": {"usd_per_day": 1}, "api_key": KEYS}
        async with a_box(sections=sections, budget={"usd_per_day": 1}) as box:
            seen = await deferring(box).ask(tenant="kitchen", max_tokens=4000)
            assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.BUDGET_EXHAUSTED)
            assert stands(box, Scope.ALL) == stands(box, Scope.ROUTE, "auto") == (0, 0)
            assert box.client.calls == 0

    run(main)


def test_a_key_is_for_its_routes_and_under_its_label():
    """What a key is not for does not exist for it; a private key's request stays whatever the route says."""

    async def main():
        async with a_box(sections={"api_key": KEYS}) as box:
            seen = await deferring(box).ask(model=PINNED, tenant="porch")
            assert isinstance(seen.error, ModelNotFound)
            assert (await box.ask(tenant="diary")).head.served_by is Target.LOCAL
            assert box.client.calls == 0

    run(main)


def test_thirty_at_once_over_two_routes_to_the_money_overshoot_nothing():
    """Pinned and routed calls of one key compete for the same three places."""

    async def main():
        key = [{"name": "kitchen", "key": "env:KITCHEN_KEY", "usd_per_day": 0.0007}]
        async with a_box(sections={"api_key": key}, thresholds={"queue": 100}) as box:
            deferring(box, delay_s=0.02)
            models = ["auto", PINNED] * 15
            await asyncio.gather(*(box.ask(model=model, tenant="kitchen", max_tokens=100) for model in models))
            assert box.client.calls == 3
            assert stands(box, Scope.KEY, "kitchen")[0] <= 700
            await box.at_rest()

    run(main)


# -- the worst case --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "sent"), [(None, 4096), (100, 100), (9000, 4096)])
def test_what_is_reserved_is_what_the_provider_may_write(asked, sent):
    """The model's max_output_tokens is the ceiling, and is sent along, so that the reservation is the worst case."""

    async def main():
        async with a_box(budget={"usd_per_day": 1}) as box:
            await deferring(box).ask(max_tokens=asked)
            assert (await box.up.request()).body["max_tokens"] == sent

    run(main)


def test_a_call_dearer_than_the_whole_limit_says_so():
    """Waiting for tomorrow would not help."""

    async def main():
        async with a_box(budget={"usd_per_day": 0.001}, locality="cloud_only") as box:
            seen = await deferring(box).ask(max_tokens=4000)
            assert "max_tokens" in seen.error.message
            assert (await box.ask(limits={"max_cost_uusd": 1})).error.param == "edged.max_cost_usd"

    run(main)


# -- what it cost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said_usd", "cost_uusd"), [(0.0001, 100), (0.0009, 900), (0, 200), (None, 200)], ids=["less", "more", "0", "none"]
)
def test_both_figures_of_a_cost_are_kept(said_usd, cost_uusd):
    """The provider's own counts; a zero beside tokens that have a price is not believed."""

    async def main():
        async with a_box() as box:
            deferring(box).up.default = Reply(text="yes", usage=USED | ({} if said_usd is None else {"cost": said_usd}))
            await box.ask()
            (cloud,) = box.cloud_attempts
            assert (cloud.cost_uusd, cloud.computed_cost_uusd, cloud.cost_estimated) == (cost_uusd, 200, False)
            assert cloud.provider_cost_uusd == (None if said_usd is None else round(said_usd * 1e6))

    run(main)


def test_an_answer_that_breaks_off_is_estimated_within_what_was_seen():
    """Marked in the attempt, and in the budget's estimated share."""

    async def main():
        async with a_box(locality="cloud_only") as box:
            box.up.reply(text="one two three four five six", usage=USED, cut_at_byte=400, cut="close")
            seen = await box.ask()
            assert isinstance(seen.error, EdgedError)
            (cloud,) = box.cloud_attempts
            assert (cloud.outcome, cloud.cost_estimated, cloud.usage.estimated) == (Outcome.FAILED, True, True)
            (everybody,) = [b for b in box.cloud.money.snapshot() if b.scope is Scope.ALL]
            assert everybody.estimated_uusd == everybody.spent_uusd == cloud.cost_uusd > 0

    run(main)


# -- power cuts and disks --------------------------------------------------------------------------------------------


def test_a_call_cut_off_by_the_power_counts_as_spent_in_full(tmp_path):
    """The promise is on disk before the upstream hears of the call; the next start finds it, marked as an estimate."""

    async def main():
        with a_ledger(tmp_path / "l.db") as first:
            async with a_box(ledger=first, budget={"usd_per_day": 1}, sections={"api_key": KEYS}) as box:
                box.engine.default = Script(logprob=UNSURE)
                box.up.reply(hang=True)
                task = asyncio.create_task(box.ask(tenant="kitchen", max_tokens=100))
                await box.up.request()
                promised = stands(box, Scope.ROUTE, "auto")[1]
                with a_ledger(tmp_path / "l.db") as second:  # as a start after the cut would read it
                    kept = second.kept_money()
                    async with a_box(ledger=second, budget={"usd_per_day": 1}, sections={"api_key": KEYS}) as again:
                        assert [one.amount_uusd for one in kept.open] == [promised]
                        assert (
                            stands(again, Scope.ROUTE, "auto") == stands(again, Scope.KEY, "kitchen") == (promised, 0)
                        )
                        assert again.budget.estimated_uusd == promised > 0
                    assert second.kept_money().open == ()
                task.cancel()
                await asyncio.wait([task])

    run(main)


def test_a_restart_goes_on_where_the_last_run_stopped(tmp_path):
    """Spent stays spent, estimates stay estimates, and no place is left over from calls that ended."""

    async def main():
        for spent in (200, 400, 600):
            with a_ledger(tmp_path / "l.db") as ledger:
                async with a_box(ledger=ledger, budget={"usd_per_day": 0.0007}) as box:
                    await deferring(box).ask(max_tokens=50)
                    assert stands(box, Scope.ROUTE, "auto") == (spent, 0)
        with a_ledger(tmp_path / "l.db") as ledger:
            async with a_box(ledger=ledger, budget={"usd_per_day": 0.0007}) as box:
                assert (await deferring(box).ask(max_tokens=50)).head.reason is Reason.BUDGET_EXHAUSTED

    run(main)


@pytest.mark.parametrize(("policy", "by"), [("local", Target.LOCAL), ("serve", Target.CLOUD)])
def test_spend_that_cannot_be_recorded_is_not_made(tmp_path, policy, by):
    """With a full disk a budgeted call fails closed, from the very first one, and local answers go on."""

    is_full = threading.Event()

    class Disk(sqlite3.Connection):
        def execute(self, sql, *values):
            if is_full.is_set() and sql.startswith(("INSERT", "BEGIN")):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *values)

    async def main():
        tuning = Tuning(commit_every_s=0.02, retry_every_s=60.0)
        ledger = Ledger.open(
            tmp_path / "l.db",
            keep_days=30,
            store_text=False,
            tuning=tuning,
            connect=lambda path: sqlite3.connect(path, isolation_level=None, factory=Disk),
        )
        ledger.kept_money()
        is_full.set()
        sections = {"budget": {"usd_per_day": 1, "when_ledger_fails": policy}}
        async with a_box(sections=sections, spent_uusd=0) as box:
            box.cloud.money._journal = ledger
            seen = [await deferring(box).ask(max_tokens=50) for _ in range(3)]
            assert {one.head.served_by for one in seen} == {by}
            assert box.client.calls == (0 if by is Target.LOCAL else 3)
            pinned = await box.ask(model=PINNED, max_tokens=50)
            assert isinstance(pinned.error, SpendUnrecorded) is (by is Target.LOCAL)
            await box.at_rest()
        ledger.close(10)

    run(main)


def test_a_disk_that_does_not_answer_in_time_is_no_disk(monkeypatch):
    """A sync that hangs holds a request for a moment, not for ever; then it is answered here."""
    monkeypatch.setattr("edged.dispatch.money._SYNC_S", 0.05)

    class Hanging(NoJournal):
        def promise(self, _reservation, _mark, kept=None):
            """Never heard of again."""

    async def main():
        async with a_box(budget={"usd_per_day": 1}) as box:
            box.cloud.money._journal = Hanging()
            assert (await deferring(box).ask()).head.reason is Reason.BUDGET_EXHAUSTED
            assert box.client.calls == 0
            await box.at_rest()

    run(main)


def test_a_day_may_begin_at_the_boxs_own_midnight(monkeypatch):
    """Half an hour after noon in UTC it is tomorrow in Auckland."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        config = a_config(upstreams=[], budget={"day_starts": "local"}, route=[{"name": "auto", "local": "small"}])
        wall_s = NOON + 1_800
        money = Money(config, clocks=Clocks(lambda: wall_s, lambda: 100.0))
        assert money._days.date == 20_001
        assert money._days.left_s(wall_s=wall_s, elapsed_s=100.0) < DAY_S - 1_800 + 1
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_client_that_leaves_while_its_promise_is_written_leaves_no_promise(tmp_path):
    """Nothing stays reserved for a call that was never made."""

    class Slow:
        is_failing = False
        closed: tuple[str, ...] = ()

        def promise(self, reservation, mark, kept=None):
            asked.set()

        def keep(self, budgets, mark, *, closed=()):
            self.closed += closed

    async def main():
        async with a_box(budget={"usd_per_day": 1}) as box:
            box.cloud.money._journal = slow = Slow()
            task = asyncio.create_task(deferring(box).ask())
            await asked.wait()
            task.cancel()
            await asyncio.wait([task])
            assert len(slow.closed) == 1
            await box.at_rest()

    asked = asyncio.Event()
    run(main)


# -- whatever happens ------------------------------------------------------------------------------------------------


class Disk:
    """A journal in memory: notes reach the disk when a promise waits for it, or by and by; a crash loses the rest."""

    is_failing = False

    def __init__(self):
        self.notes, self.synced = [], 0

    def promise(self, reservation, mark, kept=None):
        self.notes.append((mark, reservation, (), ()))
        if kept is not None:
            self.sync()
            kept(True)

    def keep(self, budgets, mark, *, closed=()):
        self.notes.append((mark, None, budgets, closed))

    def sync(self):
        self.synced = len(self.notes)

    def crash(self, survive):
        """What the next start reads: all that was synced, and as much of the rest as the disk happened to take."""
        self.notes = self.notes[: max(self.synced, survive)]
        mark, spent, promised = None, {}, {}
        for mark, reservation, budgets, closed in self.notes:
            if reservation is not None:
                promised[reservation.id] = reservation
            for one in closed:
                promised.pop(one, None)
            spent |= {(mark.number, b.scope, b.name): b for b in budgets}
        today = tuple(b for (day, _, _), b in spent.items() if mark and day == mark.number)
        return KeptMoney(mark, today, tuple(promised.values()))


LIMITS_UUSD = {EVERYBODY: 3_000, Account(Scope.ROUTE, "auto"): 2_000, Account(Scope.KEY, "kitchen"): 1_500}
CONFIG = a_config(
    routes=[a_route(budget={"usd_per_day": 0.002})],
    upstreams=[],
    upstream=[
        {
            "name": "cloud",
            "base_url": "http://127.0.0.1:9/v1",
            "model": [{"name": "scripted-model", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}],
        }
    ],
    budget={"usd_per_day": 0.003},
    api_key=[{"name": "kitchen", "key": "env:KITCHEN_KEY", "usd_per_day": 0.0015}],
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(1, 600), st.booleans()),
        st.tuples(st.just("end"), st.floats(0, 1), st.booleans()),
        st.tuples(st.just("time"), st.floats(0, DAY_S), st.booleans()),
        st.tuples(st.just("clock"), st.floats(-3 * DAY_S, 3 * DAY_S), st.booleans()),
        st.tuples(st.just("crash"), st.integers(0, 200), st.booleans()),
        st.tuples(st.just("sync"), st.just(0), st.booleans()),
    ),
    max_size=50,
)


class World:
    """Money in the hands of a test, with the true bill beside it."""

    def __init__(self):
        self.wall_s, self.elapsed_s = NOON, 100.0
        self.disk, self.under_way = Disk(), []
        self.billed = dict.fromkeys(LIMITS_UUSD, 0)
        self.start(KeptMoney())

    def start(self, kept):
        self.money = Money(
            CONFIG, journal=self.disk, kept=kept, clocks=Clocks(lambda: self.wall_s, lambda: self.elapsed_s)
        )
        self.day = self.money._days.number

    def look(self):
        self.money.snapshot()
        if self.money._days.number != self.day:
            self.day = self.money._days.number
            self.billed = dict.fromkeys(LIMITS_UUSD, 0)

    async def call(self, max_tokens, *, pinned):
        self.look()
        request = a_request(max_tokens=max_tokens, tenant="kitchen", model=PINNED if pinned else "auto")
        trace = Trace(request, received_at=0.0)
        hold = await self.money.reserve(trace, resolve(CONFIG, request.model), PINNED, the_terms())
        if isinstance(hold, EdgedError):
            return
        attempt = trace.attempt(Target.CLOUD, backend="cloud", model="scripted-model")
        attempt.hold = hold
        assert limited(request, attempt).max_tokens == max_tokens
        self.under_way.append((trace, attempt))

    def bill(self, attempt, cost_uusd):
        for account in attempt.hold.accounts:
            self.billed[account] += cost_uusd

    def end(self, share):
        self.look()
        trace, attempt = self.under_way.pop()
        attempt.usage = Usage(prompt_tokens=int(share * attempt.hold.amount_uusd))
        attempt.end(Outcome.SERVED)
        attempt.finishes = ["stop"]
        self.money.settle(trace)
        self.bill(attempt, attempt.cost_uusd)

    def crash(self, survive):
        """The provider bills what was under way in full; the start after it may find a new day."""
        number = self.day
        for _, attempt in self.under_way:
            self.bill(attempt, attempt.hold.amount_uusd)
        self.under_way.clear()
        self.elapsed_s = 50.0
        self.check_bill()
        self.start(self.disk.crash(survive))
        if self.day > number:
            self.billed = dict.fromkeys(LIMITS_UUSD, 0)

    def check_bill(self):
        assert all(self.billed[account] <= limit for account, limit in LIMITS_UUSD.items())

    def check(self):
        self.check_bill()
        for budget in self.money.snapshot():
            account = Account(budget.scope, budget.name)
            assert budget.spent_uusd + budget.reserved_uusd <= LIMITS_UUSD[account]
            assert budget.reserved_uusd == sum(
                attempt.hold.amount_uusd for _, attempt in self.under_way if account in attempt.hold.accounts
            )


@settings(max_examples=150, deadline=None)
@given(script=steps)
def test_no_sequence_of_calls_crashes_and_clock_steps_spends_more_than_the_limit(script):
    """What providers bill in one day of a budget stays within its limit, whatever is lost in a crash."""

    async def main():
        world = World()
        for kind, value, flag in script:
            if kind == "call":
                await world.call(value, pinned=flag)
            elif kind == "end" and world.under_way:
                world.end(value)
            elif kind in ("time", "clock"):
                world.wall_s = max(0.0, world.wall_s + value)
                world.elapsed_s += value if kind == "time" else 0
                world.look()
            elif kind == "crash":
                world.crash(value)
            elif kind == "sync":
                world.disk.sync()
            world.check()

    asyncio.run(main())
