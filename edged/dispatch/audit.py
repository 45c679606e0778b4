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
Heard = Callable[[str | None], None]
"""Hears what the cloud said, None where it said nothing; called once, from the event loop."""


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    route: RouteConfig
    allowed: Terms
    said: Said
    request_id: str
    heard: Heard = lambda _: None


class Auditor:
    """Takes finished requests, keeps few, and hands one ``Audit`` to the sink for each that called anybody."""

    def __init__(self, cloud: Cloud, sink: AuditSink) -> None:
        self._cloud = cloud
        self._sink = sink
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[Said | None]] = set()
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
        self._start(_Job(_question(trace.request), route, _unhurried(allowed), _said(author), trace.request.id))

    def ask(
        self, request: Request, *, answers: str, route: RouteConfig, allowed: Terms, said: str, heard: Heard
    ) -> None:
        """Ask the cloud a question whose answer of the box, ``said``, was served; call it behind the record.

        The caller has drawn the lot. ``request`` is what the cloud is asked, under an id of its own; ``answers`` is the
        id of the request that was served. What may not leave, or finds too many waiting, is skipped and heard as None.
        Returns at once.
        """
        if not allowed.may_escalate or estimate_prompt_tokens(request) > MAX_PROMPT_TOKENS:
            self.skipped += 1
            heard(None)
            return
        self._start(_Job(_question(request), route, _unhurried(allowed), Said(said), answers, heard))

    def _start(self, job: _Job) -> None:
        if self._closed or len(self._tasks) >= AT_ONCE + WAITING:
            self.skipped += 1
            job.heard(None)
            return
        task = asyncio.create_task(self._run(job), name="audit")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._over(task, job))

    async def close(self) -> None:
        """Cancel what runs, record what it called, and take nothing more."""
        self._closed = True
        for task in (tasks := set(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _over(self, task: asyncio.Task[Said | None], job: _Job) -> None:
        self._tasks.discard(task)
        answer: Said | None = None
        if not task.cancelled():
            if (error := task.exception()) is not None:
                log.error("an audit failed: %r", error)
            else:
                answer = task.result()
        job.heard(answer.text if answer else None)

    async def _run(self, job: _Job) -> Said | None:
        async with self._at_once:
            request = replace(job.request, received_s=time.monotonic())
            trace = Trace(request, received_at=time.time())
            trace.route = job.route.name
            answer: Said | None = None
            error: str | None = "cancelled"
            try:
                answer, error = await self._ask(trace, job)
            finally:
                self._record(job.request_id, trace, _compared(job, answer), error)
        return answer

    async def _ask(self, trace: Trace, job: _Job) -> tuple[Said | None, str | None]:
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
        return _said(outcome.attempt), None

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


def _compared(job: _Job, answer: Said | None) -> Agreement | None:
    output = job.request.output
    is_exact = output.kind in (OutputKind.REGEX, OutputKind.GRAMMAR)
    return compare(job.said, answer, is_json=output.is_json, is_exact=is_exact) if answer else None


def _unhurried(allowed: Terms) -> Terms:
    return replace(allowed, deadline_s=None)


def _question(request: Request) -> Request:
    """The same question under a name of its own, whole and without hurry."""
    limits = replace(request.limits, deadline_s=None)
    return replace(request, id=f"{request.id}.audit", stream=False, background=True, limits=limits)


def _said(attempt: AttemptTrace) -> Said:
    text = "".join(attempt.texts[0])
    return Said(text, tuple((call.name, call.arguments) for call in attempt.calls[0]))
