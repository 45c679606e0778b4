"""A second answer started in the cloud when the local one is late: the first acceptable one is the author.

One task per side. The winner is chosen at one place, by ``routing.hedge.winner``; the loser is cancelled, closed and
priced before the winner's first byte is sent, so that nothing of it can reach the client.
"""

import asyncio
from typing import Any

from edged.config import Config, RouteConfig
from edged.core import Decision, EngineState, Outcome, Reason, Target
from edged.dispatch.cloud import Cloud, CloudFailure
from edged.dispatch.local import GENERATION, Commit, Deferral, Source, attempt_local
from edged.dispatch.trace import AttemptTrace, Trace
from edged.engine.host import Engine
from edged.routing.hedge import HedgeBudget, Side, Tail, Winner, winner
from edged.routing.policy import Terms

LOST = "hedge_lost"

Local = asyncio.Task[Commit | Deferral]
Remote = asyncio.Task[Commit | CloudFailure]
Result = tuple[Commit | Deferral, CloudFailure | None]
"""What ``attempt_local`` gives, and how the cloud failed where it was asked already."""


class Hedging:
    """The measured tail and the hedge budget of every route."""

    def __init__(self, config: Config, cloud: Cloud) -> None:
        self._cloud = cloud
        self.budgets = {route.name: HedgeBudget(route.hedge.max_share) for route in config.routes}
        self.tails = {(route.name, stream): Tail() for route in config.routes for stream in (True, False)}

    def __repr__(self) -> str:
        return f"Hedging(budgets={self.budgets})"

    async def attempt(
        self, engine: Engine, trace: Trace, route: RouteConfig, allowed: Terms, source: Source = GENERATION
    ) -> Result:
        """Try the local engine and, where it is late and the route hedges, the cloud beside it.

        A model that is not loaded yet is not hedged against: loading has its own patience. Raises: InvalidRequest.
        """
        if not (route.hedge.enabled and allowed.may_escalate and engine.state is EngineState.READY):
            return await attempt_local(engine, trace, allowed, source), None
        self.budgets[route.name].earn()
        local: Local = asyncio.create_task(attempt_local(engine, trace, allowed, source))
        remote: Remote | None = None
        try:
            if await self._is_late(local, trace, route, allowed):
                remote = asyncio.create_task(self._cloud.attempt(trace, route, allowed))
                result = await self._race(engine, trace, local, remote)
            else:
                result = await local, None
        except BaseException:
            await _abandon(local)
            await _abandon(remote)
            raise
        self._note(trace, route)
        return result

    async def _is_late(self, local: Local, trace: Trace, route: RouteConfig, allowed: Terms) -> bool:
        """Wait for the local verdict; True where it is late, somebody may be asked and a hedge may be spent."""
        after_s = route.hedge.after_s or self._tail(trace, route).p95_s
        if after_s is None:
            return False
        await asyncio.wait([local], timeout=max(0.0, after_s - trace.judged_s))
        if local.done() or _has_first_token(trace) or not self._cloud.upstreams.ready(allowed.upstreams):
            return False
        return self.budgets[route.name].spend()

    async def _race(self, engine: Engine, trace: Trace, local: Local, remote: Remote) -> Result:
        """Run both until one is accepted or both have lost."""
        asked_s = trace.judged_s
        while (won := winner(_side(local), _side(remote))) is Winner.OPEN:
            await asyncio.wait([t for t in (local, remote) if not t.done()], return_when=asyncio.FIRST_COMPLETED)
        if won is Winner.CLOUD:
            if not local.done():
                _decide(trace, Target.CLOUD, Reason.TTFT_EXCEEDED, asked_s)
            await _abandon(local)
            _end(trace, Target.LOCAL, Outcome.DISCARDED)
            for engine_id in trace.engine_ids:
                engine.release(engine_id)
            return _commit(remote.result()), None
        if won is Winner.LOCAL:
            _decide(trace, Target.LOCAL, trace.reason, asked_s)
            await _abandon(remote)
            _end(trace, Target.CLOUD, Outcome.CANCELLED)
            self._cloud.money.settle(trace)
            return local.result(), None
        failure = remote.result()
        assert isinstance(failure, CloudFailure)
        return local.result(), failure

    def _tail(self, trace: Trace, route: RouteConfig) -> Tail:
        return self.tails[route.name, trace.request.stream]

    def _note(self, trace: Trace, route: RouteConfig) -> None:
        """The time to the local verdict of a stream, to the first token of a whole answer; so far, if cut off as late.

        One that failed or left before it was late says nothing of how long an answer takes.
        """
        attempt = _local(trace)
        if attempt is None:
            return
        was_late = attempt.error == LOST or trace.reason is Reason.TTFT_EXCEEDED
        if attempt.first_token_s is None and not was_late:
            return
        seen_s = attempt.first_token_s
        if trace.request.stream or seen_s is None:
            self._tail(trace, route).note(trace.judged_s)
        else:
            self._tail(trace, route).note(seen_s - trace.request.received_s - trace.load_s)


def _local(trace: Trace) -> AttemptTrace | None:
    return next((attempt for attempt in trace.attempts if attempt.target is Target.LOCAL), None)


def _has_first_token(trace: Trace) -> bool:
    """A whole answer is on its way once it has begun; a stream is late until something may be sent."""
    attempt = _local(trace)
    return not trace.request.stream and attempt is not None and attempt.first_token_s is not None


def _side(task: asyncio.Task[Any]) -> Side:
    """Raises what the task raised."""
    if not task.done():
        return Side.RUNNING
    return Side.ACCEPTED if isinstance(task.result(), Commit) else Side.LOST


def _commit(outcome: Commit | CloudFailure) -> Commit:
    assert isinstance(outcome, Commit)
    return outcome


def _decide(trace: Trace, target: Target, reason: Reason, threshold_s: float) -> None:
    trace.decide(Decision(target=target, reason=reason, stage="hedge", threshold=threshold_s))


def _end(trace: Trace, side: Target, outcome: Outcome) -> None:
    for attempt in trace.attempts:
        if attempt.target is side and attempt.outcome is None:
            attempt.end(outcome, LOST)


async def _abandon(task: asyncio.Task[Any] | None) -> None:
    """Cancel a side, wait until it has let go, and close what it had committed."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None and isinstance(task.result(), Commit):
        await task.result().rest.aclose()
