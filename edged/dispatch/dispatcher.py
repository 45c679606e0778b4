"""From a request to one author and one record."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from edged.config import Config, RouteConfig
from edged.core import Decision, EngineState, Locality, Outcome, Reason, Record, Request, Status, Target
from edged.core.questions import Judges, QuestionsRequest
from edged.core.texts import TextsRequest
from edged.dispatch.answer import Answer, Decisions, Embeddings, Head
from edged.dispatch.audit import Auditor
from edged.dispatch.closed_chat import closed_chat
from edged.dispatch.cloud import Cloud, CloudFailure
from edged.dispatch.conversations import Authors
from edged.dispatch.decisions import Questionnaire
from edged.dispatch.embedding import DECIDE, check_purpose, embed_local
from edged.dispatch.forecasts import Forecasts
from edged.dispatch.hedge import Hedging
from edged.dispatch.judging import GENERATED, Case, PlainJudges, ScoredCase, teach
from edged.dispatch.local import Commit, Deferral, Source, resume_local
from edged.dispatch.money import Money
from edged.dispatch.trace import AttemptTrace, Trace
from edged.dispatch.upstreams import Upstreams
from edged.engine.host import Engine
from edged.errors import Busy, EdgedError, InvalidRequest, NotReady
from edged.routing import names, policy
from edged.routing.policy import Terms

log = logging.getLogger(__name__)

RecordSink = Callable[[Record], None]
_BUSY_RETRY_S = 2.0


class Dispatcher:
    """Owns what is in flight. Every accepted request leaves exactly one record in every sink."""

    def __init__(
        self,
        config: Config,
        *,
        engines: Mapping[str, Engine],
        cloud: Cloud,
        sinks: Sequence[RecordSink] = (),
        auditor: Auditor | None = None,
        judges: Judges | None = None,
    ) -> None:
        self._config = config
        self._judges = judges or PlainJudges()
        self._engines = engines
        self._cloud = cloud
        self._hedging = Hedging(config, cloud)
        self._authors = Authors()
        self.forecasts = Forecasts(config)
        self._sinks = tuple(sinks)
        self._auditor = auditor
        self.draining = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __repr__(self) -> str:
        return (
            f"Dispatcher(in_flight={self.in_flight}, draining={self.draining}, engines={list(self._engines.values())})"
        )

    @property
    def money(self) -> Money:
        return self._cloud.money

    @property
    def upstreams(self) -> Upstreams:
        return self._cloud.upstreams

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Answer]:
        """Decide who answers; inside the block, read ``chunks``. Leaving the block, however, ends all work for it.

        Raises: EdgedError when nobody answers.
        """
        async with self._accounted(request) as trace:
            route, allowed = self._resolved(trace)
            check_purpose(self._config, trace, self._engines.get(route.local), wanted="chat")
            case = closed_chat(trace.request, self._judges, allowed, model=route.local) if route.local else None
            commit = await self._author(trace, route, allowed, case or GENERATED)
            trace.author = commit.attempt
            async with aclosing(commit.rest):
                yield Answer(trace, commit, allowed, settle=self._cloud.money.settle)
        if case is not None:
            case.settle(commit)
        self._learn(trace, case, route, allowed)

    @asynccontextmanager
    async def decide(self, request: QuestionsRequest) -> AsyncIterator[Decisions]:
        """An answer to each question: by the box where it is sure, and of the cloud in one call where it is not.

        Leaving the block, however, leaves one record. Raises: EdgedError when nobody answers.
        """
        async with self._accounted(request) as trace:
            case = Questionnaire(request, self._judges)
            trace.request, trace.accepts = case.whole, case.accepts
            route, allowed = self._resolved(trace)
            check_purpose(self._config, trace, self._engines.get(route.local), wanted="chat", endpoint=DECIDE)
            if route.local:
                case.begin(trace.request, allowed, model=route.local)
            commit = await self._author(trace, route, allowed, case)
            trace.author = commit.attempt
            case.settle(trace, commit)
            answer = Answer(trace, commit, allowed, settle=self._cloud.money.settle)
            async for _ in answer.chunks():
                pass
            record = answer.record()
            yield Decisions(replace(answer.head, reason=record.reason), case.decided(trace), record)
        self._learn(trace, case, route, allowed)

    @asynccontextmanager
    async def embed(self, request: TextsRequest) -> AsyncIterator[Embeddings]:
        """Vectors or scores of texts. Leaving the block, however, leaves one record.

        Raises: EdgedError when no local model makes them.
        """
        async with self._accounted(request) as trace:
            route, allowed = self._resolved(trace)
            engine = self._engines.get(route.local)
            check_purpose(self._config, trace, engine, wanted=request.purpose)
            assert engine is not None
            decision = trace.decide(policy.admit(allowed, engine.snapshot(), in_flight=engine.in_flight))
            if decision.target is not Target.LOCAL:
                raise _nobody(decision.reason, engine)
            vectors = await embed_local(engine, trace, replace(request, background=trace.request.background))
            assert trace.author is not None
            head = Head(
                request_id=request.id,
                served_by=Target.LOCAL,
                model=trace.author.public_name,
                reason=trace.reason,
                confidence=None,
            )
            yield Embeddings(head, vectors, trace.record(Status.OK))

    def _learn(self, trace: Trace, case: ScoredCase | None, route: RouteConfig, allowed: Terms) -> None:
        """Behind the record: what the request teaches, and whether the cloud is asked for a second opinion."""
        auditor = None if self.draining else self._auditor
        if case is not None:
            teach(self._judges, auditor, trace, case, route=route, allowed=allowed)
        if auditor is not None:
            auditor.offer(trace, route, allowed)

    def _resolved(self, trace: Trace) -> tuple[RouteConfig, Terms]:
        """The route of a request and what it allows, both noted. Raises: ModelNotFound, InvalidRequest."""
        request = trace.request
        key = self._config.key_of(request.tenant)
        route = names.resolve(self._config, request.model, only=key.routes if key else ())
        trace.route = route.name
        question = self._judges.question_of(request)
        route = self._authors.served_as(trace, route, task=question.name if question else None)
        label = key.locality if key else Locality.ANY
        allowed = policy.terms(route, request, key=label, trust_of=self._config.trust_of)
        trace.locality = allowed.label
        allowed = self._authors.keep(trace, allowed, self._cloud.upstreams)
        is_background = route.priority == "background"
        trace.request = replace(request, background=is_background, clearance=allowed.clearance)
        return route, allowed

    @asynccontextmanager
    async def _accounted(self, request: Request) -> AsyncIterator[Trace]:
        """One request from its acceptance to its record, whatever happens inside the block."""
        trace = Trace(request, received_at=time.time())
        self.in_flight += 1
        self.idle.clear()
        status: Status = Status.FAILED
        error: str | None = "internal_error"
        try:
            self._refuse_while_draining(trace)
            yield trace
            assert trace.author is not None
            status, error = _ending(trace.author)
        except TimeoutError:  # server.stream.ClientTooSlow
            status, error = Status.CANCELLED, "client_too_slow"
            raise
        except (asyncio.CancelledError, GeneratorExit, ConnectionError):
            status, error = _ending(trace.author) if trace.author else (Status.CANCELLED, "client_gone")
            raise
        except EdgedError as exc:
            status, error = _status(trace, exc), exc.code
            raise
        finally:
            self._close(trace, status, error)
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _author(self, trace: Trace, route: RouteConfig, allowed: Terms, case: Case) -> Commit:
        """Local first where it may; the cloud where local defers; local after all where the cloud fails."""
        engine = self._engines.get(route.local)
        snapshot = engine.snapshot() if engine else None
        is_away = allowed.may_escalate and self._cloud.is_away(allowed)
        ready = self._cloud.upstreams.ready(allowed.upstreams) if allowed.may_escalate else ()
        allowed = self.forecasts.inform(allowed, model=route.local, ready=ready)
        allowed = policy.unhurried(allowed) if is_away else allowed
        decision = trace.decide(policy.admit(allowed, snapshot, in_flight=engine.in_flight if engine else 0))
        if is_away:
            trace.note_offline(decision.target)
        deferral = Deferral(decision.reason)
        failure: CloudFailure | None = None
        if engine is not None and decision.reason is Reason.LOCAL_UNAVAILABLE:
            engine.load()  # for those who come later
        if decision.target is Target.NONE:
            raise _nobody(decision.reason, engine)
        if decision.target is Target.LOCAL:
            assert engine is not None
            outcome, failure = await self._hedging.attempt(engine, trace, route, allowed, case.source)
            if isinstance(outcome, Commit):
                return outcome
            deferral = outcome
            if trace.reason is not deferral.reason:
                target = Target.CLOUD if allowed.may_escalate else Target.NONE
                trace.decide(Decision(target=target, reason=deferral.reason, stage="local"))
            if not allowed.may_escalate:
                raise deferral.error or _nobody(deferral.reason, engine)
            if failure is None:
                case.deferred(trace)
        failure_or_commit = failure or await self._cloud.attempt(trace, route, allowed)
        if isinstance(failure_or_commit, Commit):
            return failure_or_commit
        return await self._after_all(trace, engine, deferral, failure_or_commit, case.source)

    async def _after_all(
        self, trace: Trace, engine: Engine | None, deferral: Deferral, failure: CloudFailure, source: Source
    ) -> Commit:
        """Nobody in the cloud answered: the local answer is finished and served, marked with the failure's reason."""
        reason, error = failure.reason, failure.error
        if deferral.reason is Reason.PINNED_CLOUD or engine is None or trace.request.images:
            raise error
        if deferral.reason is Reason.QUEUE_FULL:
            trace.decide(Decision(target=Target.NONE, reason=Reason.REJECTED_BUSY, stage="after_all"))
            raise _nobody(Reason.REJECTED_BUSY, engine) from error
        if deferral.error is not None or (deferral.draft is None and not engine.can_answer):
            client_fault = isinstance(deferral.error, InvalidRequest) and not isinstance(error, InvalidRequest)
            raise (deferral.error if client_fault and deferral.error else error) from deferral.error
        trace.decide(Decision(target=Target.LOCAL, reason=reason, stage="after_all"))
        return await resume_local(engine, trace, deferral.draft, source)

    def _refuse_while_draining(self, trace: Trace) -> None:
        if self.draining:
            trace.decide(Decision(target=Target.NONE, reason=Reason.REJECTED_BUSY, stage="admit"))
            raise NotReady("the daemon is shutting down", retry_after_s=_BUSY_RETRY_S)

    def _close(self, trace: Trace, status: Status, error: str | None) -> None:
        """End what is still open, price it, and write the record."""
        for engine in self._engines.values():
            for engine_id in trace.engine_ids:
                engine.release(engine_id)
        ending = Outcome.CANCELLED if status is Status.CANCELLED else Outcome.FAILED
        for attempt in trace.attempts:
            if attempt.outcome is None:
                attempt.end(ending, error)
        self._cloud.close(trace)
        self.forecasts.note(trace)
        self._authors.note(trace, status)
        record = trace.record(status, error=error)
        for sink in self._sinks:
            _hand_over(record, sink)
        log.info(
            "request=%s status=%s served_by=%s model=%s reason=%s total_s=%.3f cost_uusd=%d",
            record.id,
            record.status,
            record.served_by,
            record.served_model,
            record.reason,
            record.total_s,
            record.cost_uusd,
        )


def _hand_over(record: Record, sink: RecordSink) -> None:
    """A sink that fails costs neither the client its answer nor the other sinks their record."""
    try:
        sink(record)
    except Exception:
        log.exception("request=%s a sink did not take the record", record.id)


def _ending(author: AttemptTrace) -> tuple[Status, str | None]:
    """How a request ended: a client that hangs up once it has everything was served."""
    match author.outcome:
        case Outcome.SERVED:
            return Status.OK, None
        case Outcome.FAILED:
            return Status.FAILED, author.error
        case _:
            return Status.CANCELLED, "client_gone"


def _status(trace: Trace, error: EdgedError) -> Status:
    """Rejected: turned away before anyone tried, or for what the request itself is. Failed: someone tried."""
    if trace.author is None and (isinstance(error, InvalidRequest) or not trace.attempts):
        return Status.REJECTED
    return Status.FAILED


def _nobody(reason: Reason, engine: Engine | None) -> EdgedError:
    if reason is Reason.REJECTED_BUSY:
        return Busy("all slots are taken and the queue is full", retry_after_s=_BUSY_RETRY_S)
    state = engine.state if engine else EngineState.DOWN
    return NotReady(f"the local model is {state.value}", retry_after_s=_BUSY_RETRY_S)
