"""A whole dispatcher between a scripted engine and real scripted upstreams."""

import asyncio
import contextlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from builders import a_config, a_request, a_route

from edged.core import BudgetSnapshot, Chunk, DayMark, KeptMoney, Record, Scope, Target
from edged.dispatch.answer import Head
from edged.dispatch.cloud import Cloud
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.money import Clocks, Money
from edged.errors import EdgedError
from edged.routing.budget import Account
from edged.testing import ScriptedUpstream
from edged.testing.local import ScriptedEngine
from edged.upstream.client import UpstreamClient

DAY_S = 86_400.0
SURE = -0.02
UNSURE = -6.0
WORDS = "one two three four five six seven eight"
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@dataclass
class Box:
    """The dispatcher and everything around it."""

    dispatcher: Dispatcher
    engine: ScriptedEngine
    ups: list[ScriptedUpstream]
    client: UpstreamClient
    cloud: Cloud
    records: list[Record]

    @property
    def up(self):
        return self.ups[0]

    @property
    def record(self):
        """The one record there is."""
        (record,) = self.records
        return record

    @property
    def cloud_attempts(self):
        return [a for record in self.records for a in record.attempts if a.target is Target.CLOUD]

    @property
    def budget(self):
        return self.cloud.money.budgets[Account(Scope.ROUTE, "auto")]

    async def ask(self, request=None, **fields):
        """Ask, read to the end, and give back what the client would have seen."""
        request = request or a_request(**{"stream": True, **fields})
        seen = Outcome(request.id)
        try:
            async with self.dispatcher.answer(request) as answer:
                seen.head = answer.head
                async for chunk in answer.chunks():
                    seen.chunks.append(chunk)
        except EdgedError as exc:
            seen.error = exc
        return seen

    async def at_rest(self):
        """Every side has noticed the end; nothing is held for anybody."""
        for up in self.ups:
            for seen in up.seen:
                await seen.hung_up()
        assert self.engine.in_flight == 0, self.engine
        assert self.dispatcher.in_flight == 0
        for budget in self.cloud.money.snapshot():
            assert budget.reserved_uusd == 0


@dataclass
class Outcome:
    """What a client saw."""

    request_id: str
    head: Head | None = None
    chunks: list[Chunk] = field(default_factory=list)
    error: EdgedError | None = None

    @property
    def text(self):
        return self.text_of(0)

    def text_of(self, choice):
        return "".join(chunk.text for chunk in self.chunks if chunk.choice == choice)


@asynccontextmanager
async def a_box(
    *,
    ups=1,
    up_config=None,
    sinks=(),
    spent_uusd=0,
    clock=lambda: 20_000 * DAY_S,
    engine=None,
    ledger=None,
    sections=None,
    **route,
):
    """A box with one route "auto" over one engine "small" and upstreams "cloud", "cloud1", ...

    ``sections`` are further tables of the config; with a ``ledger`` money is kept there, and read from there.
    """
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ScriptedUpstream()) for _ in range(ups)]
        quick = {
            "connect_timeout_s": 1.0,
            "first_token_timeout_s": 2.0,
            "expected_ttft_s": 0.01,
            "idle_timeout_s": 2.0,
            **(up_config or {}),
        }
        names = ["cloud" + (str(i) if i else "") for i in range(ups)]
        upstreams = [server.config(name, **quick) for server, name in zip(servers, names, strict=True)]
        fields = {"cloud": [f"{name}/scripted-model" for name in names], **route}
        fields.setdefault("hold_tokens", 4)
        config = a_config(routes=[a_route(**fields)], upstreams=upstreams, **(sections or {}))
        stack.push_async_callback(_let_accepts_end)
        client = await stack.enter_async_context(UpstreamClient(upstreams))
        kept = ledger.kept_money() if ledger else kept_today(spent_uusd)
        cloud = Cloud(client, Money(config, journal=ledger, kept=kept, clocks=Clocks(wall_s=clock, elapsed_s=clock)))
        await stack.enter_async_context(looked_after(cloud))
        engine = engine or ScriptedEngine()
        records: list[Record] = []
        sinks = [*sinks, *([ledger.append] if ledger else []), records.append]
        dispatcher = Dispatcher(config, engines={"small": engine}, cloud=cloud, sinks=sinks)
        yield Box(dispatcher, engine, servers, client, cloud, records)


def kept_today(spent_uusd):
    """What an earlier run left: the route "auto" has spent so much of day 20,000."""
    spent = BudgetSnapshot(scope=Scope.ROUTE, name="auto", limit_uusd=None, spent_uusd=spent_uusd)
    return KeptMoney(DayMark(number=1, date=20_000, open_s=0.0, wall_s=20_000 * DAY_S), (spent,))


@asynccontextmanager
async def looked_after(cloud):
    """Somebody finds out in the background who can be reached, as in the daemon."""
    task = asyncio.create_task(cloud.upstreams.tend())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _let_accepts_end():
    """A connection given up while the server was accepting it: a few turns of the loop, and the server can close it."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(main, *, within_s=60):
    """Run an async test under a deadline of its own."""

    async def bounded():
        async with asyncio.timeout(within_s):
            return await main()

    return asyncio.run(bounded())


async def cancel_after(steps, coroutine):
    """Let a task take ``steps`` turns of the event loop, then cancel it; True where that met it still running."""
    task = asyncio.create_task(coroutine)
    for _ in range(steps):
        await asyncio.sleep(0)
        if task.done():
            await task
            return False
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return True
