"""Second opinions in the background: a share of the kept local answers is also asked of the cloud.

An audit begins after its answer was served and goes the way of every cloud call: labels, budgets, cool-downs. It holds
up neither serving nor shutdown: few run at once, few wait, the rest is skipped, and closing cancels them. Whatever was
called is recorded, cancelled audits too.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from edged.config import RouteConfig
from edged.core import Audit, Outcome, OutputKind, Reason, Request, Target
from edged.dispatch.cloud import Cloud
from edged.dispatch.local import Commit
from edged.dispatch.trace import AttemptTrace, Trace
from edged.errors import EdgedError
from edged.routing.audit import Agreement, Said, compare, is_sampled
from edged.routing.policy import Terms
from edged.upstream.pricing import estimate_prompt_tokens

log = logging.getLogger(__name__)

AT_ONCE = 2
WAITING = 16
MAX_PROMPT_TOKENS = 32_768
"""Longer prompts are not audited: what waits holds its whole request in memory."""

AuditSink = Callable[[Audit], None]


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    route: RouteConfig
    allowed: Terms
    said: Said


class Auditor:
    """Takes finished requests, keeps few, and hands one ``Audit`` to the sink for each that called anybody."""

    def __init__(self, cloud: Cloud, sink: AuditSink) -> None:
        self._cloud = cloud
        self._sink = sink
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.skipped = 0

    def __repr__(self) -> str:
        return f"Auditor(open={len(self._tasks)}, skipped={self.skipped})"

    @property
    def open(self) -> int:
        """Audits that run or wait."""
        return len(self._tasks)

    def offer(self, trace: Trace, route: RouteConfig, allowed: Terms) -> None:
        """Audit this request if it is one of the sample; call it behind its record. Returns at once."""
        author = trace.author
        if not is_sampled(trace.request.id, share=route.audit.share, seed=route.audit.seed):
            return
        if author is None or author.outcome is not Outcome.SERVED or not _is_confident(trace, author, allowed):
            return
        if self._closed or len(self._tasks) >= AT_ONCE + WAITING:
            self.skipped += 1
            return
        job = _Job(_question(trace.request), route, replace(allowed, deadline_s=None), _said(author))
        task = asyncio.create_task(self._run(trace.request.id, job), name="audit")
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def close(self) -> None:
        """Cancel what runs, record what it called, and take nothing more."""
        self._closed = True
        for task in (tasks := set(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an audit failed: %r", error)

    async def _run(self, request_id: str, job: _Job) -> None:
        async with self._at_once:
            request = replace(job.request, received_s=time.monotonic())
            trace = Trace(request, received_at=time.time())
            trace.route = job.route.name
            found: Agreement | None = None
            error: str | None = "cancelled"
            try:
                found, error = await self._ask(trace, job)
            finally:
                self._record(request_id, trace, found, error)

    async def _ask(self, trace: Trace, job: _Job) -> tuple[Agreement | None, str | None]:
        try:
            outcome = await self._cloud.attempt(trace, job.route, job.allowed)
            if not isinstance(outcome, Commit):
                return None, outcome.error.code
            async with aclosing(outcome.rest) as rest:
                async for chunk in rest:
                    outcome.attempt.see(chunk)
        except EdgedError as exc:
            return None, exc.code
        outcome.attempt.end(Outcome.AUDITED)
        kind = job.request.output.kind
        is_exact = kind in (OutputKind.REGEX, OutputKind.GRAMMAR)
        return compare(job.said, _said(outcome.attempt), is_json=job.request.output.is_json, is_exact=is_exact), None

    def _record(self, request_id: str, trace: Trace, found: Agreement | None, error: str | None) -> None:
        """Price and hand over what was called; an audit that called nobody leaves nothing."""
        for attempt in trace.attempts:
            attempt.end(Outcome.CANCELLED, error)
        self._cloud.money.settle(trace)
        if not trace.attempts:
            self.skipped += 1
            return
        self._sink(
            Audit(
                request_id=request_id,
                at=trace.received_at,
                attempts=tuple(attempt.freeze(trace.request.received_s) for attempt in trace.attempts),
                measure=found.measure.value if found else None,
                agreed=found.agreed if found else None,
                score=found.score if found else None,
                error=error,
            )
        )


def _is_confident(trace: Trace, author: AttemptTrace, allowed: Terms) -> bool:
    """Kept for what it said, where it might have left: not because a label, a budget or an outage held it."""
    if author.target is not Target.LOCAL or trace.reason is not Reason.WITHIN_BUDGET or not allowed.may_escalate:
        return False
    is_sure = author.confidence is None or author.confidence >= allowed.confidence
    return is_sure and trace.request.n == 1 and estimate_prompt_tokens(trace.request) <= MAX_PROMPT_TOKENS


def _question(request: Request) -> Request:
    """The same question under a name of its own, whole and without hurry."""
    limits = replace(request.limits, deadline_s=None)
    return replace(request, id=f"{request.id}.audit", stream=False, background=True, limits=limits)


def _said(attempt: AttemptTrace) -> Said:
    text = "".join(attempt.texts[0])
    return Said(text, tuple((call.name, call.arguments) for call in attempt.calls[0]))
