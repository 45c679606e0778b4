"""The local try: prepare, generate, hold on probation, keep or defer."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from edged.core import Chunk, Decision, EngineState, FinishReason, Outcome, Reason, Release, Request, Target, ToolMode
from edged.dispatch import structure
from edged.dispatch.trace import AttemptTrace, Trace
from edged.engine.host import Engine, Kept, Prompt
from edged.errors import ContextOverflow, EdgedError, EngineError, NotReady, TemplateRejected, Unsupported
from edged.routing import policy
from edged.routing.latency import raw_wait_s
from edged.routing.policy import Review, Terms, Verdict
from edged.routing.probation import Observation

LAST_CALL_S = 0.01
"""A loop that was busy reads what came in time before the silence is judged."""


@dataclass(slots=True)
class Commit:
    """An author has been chosen: what it said so far, and the rest to come. Close ``rest`` whatever happens."""

    attempt: AttemptTrace
    held: list[Chunk]
    rest: AsyncGenerator[Chunk, None]


@dataclass(slots=True)
class Draft:
    """A local answer that was deferred, kept in case no one else answers."""

    attempt: AttemptTrace
    held: list[Chunk]

    @property
    def kept(self) -> tuple[Kept, ...]:
        pairs = zip(self.attempt.tokens, self.attempt.finishes, strict=True)
        return tuple(
            Kept(tuple(t.id for t in tokens if t.id is not None), finish is not None) for tokens, finish in pairs
        )


@dataclass(frozen=True, slots=True)
class Deferral:
    """Local should not, or cannot, answer. ``error`` is what the client hears if nobody else can either."""

    reason: Reason
    error: EdgedError | None = None
    draft: Draft | None = None


async def nothing() -> AsyncGenerator[Chunk, None]:
    """The rest of an answer that is already whole."""
    no_chunks: tuple[Chunk, ...] = ()
    for chunk in no_chunks:
        yield chunk


class Source(Protocol):
    """How a local answer comes about, as ``Engine`` has it. ``answer_tokens``: so many are decoded, if it is known."""

    @property
    def answer_tokens(self) -> int | None: ...

    async def prepare(self, engine: Engine, request: Request) -> Prompt: ...

    def generate(
        self, engine: Engine, prompt: Prompt, attempt: AttemptTrace, kept: tuple[Kept, ...] = ()
    ) -> AsyncGenerator[Chunk, None]: ...


class Generation:
    """Token by token."""

    answer_tokens: int | None = None

    async def prepare(self, engine: Engine, request: Request) -> Prompt:
        return await engine.prepare(request)

    def generate(
        self, engine: Engine, prompt: Prompt, _attempt: AttemptTrace, kept: tuple[Kept, ...] = ()
    ) -> AsyncGenerator[Chunk, None]:
        return engine.generate(prompt, kept)


GENERATION = Generation()


async def attempt_local(engine: Engine, trace: Trace, allowed: Terms, source: Source = GENERATION) -> Commit | Deferral:
    """Try the local engine under the route's terms.

    Raises: InvalidRequest (the request itself is at fault).
    """
    try:
        await loaded(engine, trace, within_s=policy.load_patience_s(allowed))
    except TimeoutError:
        return Deferral(Reason.LOCAL_UNAVAILABLE)
    except (NotReady, EngineError) as exc:
        return Deferral(Reason.LOCAL_UNAVAILABLE, exc)
    attempt = trace.attempt(Target.LOCAL, backend=engine.config.name, model=engine.config.name)
    try:
        async with asyncio.timeout(_patience_s(trace, allowed)):
            prompt = await source.prepare(engine, trace.request)
    except TimeoutError:
        return _defer(trace, Review(Verdict.DEFER, Reason.TTFT_EXCEEDED), Draft(attempt, []), allowed)
    except ContextOverflow as exc:
        return _unable(attempt, Reason.CONTEXT_OVERFLOW, exc)
    except (TemplateRejected, Unsupported) as exc:
        return _unable(attempt, Reason.CAPABILITY, exc)
    except (NotReady, EngineError) as exc:
        return _unable(attempt, Reason.LOCAL_UNAVAILABLE, exc)
    attempt.prompt_tokens = prompt.prompt_tokens
    decision = trace.decide(
        policy.review_admission(
            allowed,
            prompt.snapshot,
            trace.request,
            prompt_tokens=prompt.prompt_tokens,
            cached_tokens=prompt.cached_tokens,
            elapsed_s=trace.judged_s,
            load_s=trace.load_s,
            answer_tokens=source.answer_tokens,
        )
    )
    if decision.target is not Target.LOCAL:
        engine.release(trace.request.id)
        attempt.end(Outcome.DISCARDED)
        return Deferral(decision.reason, draft=Draft(attempt, []))
    _expect(attempt, engine, prompt, allowed)
    patient = policy.with_patience(allowed, elapsed_s=trace.judged_s)
    outcome = await Probation(source.generate(engine, prompt, attempt), attempt, trace, patient).run()
    if isinstance(outcome, Deferral):
        engine.release(trace.request.id)
    return outcome


def _expect(attempt: AttemptTrace, engine: Engine, prompt: Prompt, allowed: Terms) -> None:
    """Note what the answer may become, to judge it on the way and to learn from how it went."""
    request, cached = prompt.request, prompt.cached_tokens
    left_tokens = prompt.snapshot.context_tokens - prompt.prompt_tokens
    attempt.asked_tokens = request.max_tokens
    limits = (request.max_tokens, engine.config.max_output_tokens, left_tokens)
    attempt.limit_tokens = min(limit for limit in limits if limit is not None)
    attempt.json = structure.watched(request)
    attempt.reviewed_s = time.monotonic()
    attempt.raw_wait_s = raw_wait_s(
        prompt.snapshot, uncached_tokens=prompt.prompt_tokens - cached, cached_tokens=cached, learned=allowed.learned
    )


async def loaded(engine: Engine, trace: Trace, *, within_s: float | None = None) -> None:
    """Wait for the model, and note how long that took: nobody's latency.

    Raises: TimeoutError, NotReady, OutOfMemory.
    """
    if engine.state is EngineState.READY:
        return
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(within_s):
            await engine.loaded()
    finally:
        trace.load_s += time.monotonic() - started_s


async def resume_local(engine: Engine, trace: Trace, draft: Draft | None, source: Source = GENERATION) -> Commit:
    """Finish a deferred answer after all, from where it stopped, or begin it; it is committed at once.

    Raises: NotReady, OutOfMemory, WorkerLost.
    """
    if draft is None or not draft.attempt.finished:
        await loaded(engine, trace, within_s=None)
    if draft is None:
        draft = Draft(trace.attempt(Target.LOCAL, backend=engine.config.name, model=engine.config.name), [])
    attempt = draft.attempt
    attempt.outcome = attempt.raw_wait_s = None  # what it waited for from here on was foreseen by nobody
    if attempt.finished:
        return Commit(attempt, draft.held, nothing())
    # A new id: what the cancelled try's last step produced may still be on its way, addressed to the old one.
    request = replace(trace.request, id=f"{trace.request.id}.resumed")
    trace.engine_ids.append(request.id)
    prompt = await source.prepare(engine, request)
    attempt.prompt_tokens = prompt.prompt_tokens
    return await _commit(trace, attempt, draft.held, source.generate(engine, prompt, attempt, draft.kept))


def _patience_s(trace: Trace, allowed: Terms) -> float | None:
    """How long the first token may still take; no limit where nobody else could answer."""
    return max(0.0, allowed.ttft_s - trace.judged_s) if allowed.may_escalate else None


def _unable(attempt: AttemptTrace, reason: Reason, error: EdgedError) -> Deferral:
    attempt.end(Outcome.FAILED, error.code)
    return Deferral(reason, error)


def _defer(trace: Trace, verdict: Review, draft: Draft, allowed: Terms) -> Deferral:
    trace.decide(_decision(verdict, Target.CLOUD, allowed))
    draft.attempt.end(Outcome.DISCARDED)
    return Deferral(verdict.reason, draft=draft)


def _decision(verdict: Review, target: Target, allowed: Terms) -> Decision:
    confidence = allowed.confidence if verdict.threshold is None else verdict.threshold
    limits = {
        Reason.WITHIN_BUDGET: confidence if math.isfinite(confidence) else None,
        Reason.LOW_CONFIDENCE: confidence if math.isfinite(confidence) else None,
        Reason.TTFT_EXCEEDED: allowed.ttft_s,
        Reason.ITL_EXCEEDED: allowed.itl_s,
        Reason.DEADLINE_PREDICTED: allowed.deadline_s,
    }
    return Decision(
        target=target,
        reason=verdict.reason,
        stage="checkpoint" if verdict.early else "review",
        confidence=verdict.confidence,
        threshold=limits.get(verdict.reason),
    )


async def _commit(
    trace: Trace, attempt: AttemptTrace, held: list[Chunk], stream: AsyncGenerator[Chunk, None]
) -> Commit:
    """A stream begins now; any other answer is read to its end first, while its author may still change.

    Raises: EngineError.
    """
    if trace.request.stream:
        return Commit(attempt, held, stream)
    async for chunk in stream:
        held.append(chunk)
        attempt.see(chunk)
    check_finished(attempt)
    return Commit(attempt, held, nothing())


def check_finished(attempt: AttemptTrace) -> None:
    """A local answer whose chunks are over is whole. Raises: EngineError."""
    if not attempt.finished:
        raise _unfinished()


def _unfinished() -> EngineError:
    return EngineError("the engine ended an answer without finishing it")


class Probation:
    """Holds a local answer back while the policy is asked at every step and at every deadline."""

    def __init__(
        self, stream: AsyncGenerator[Chunk, None], attempt: AttemptTrace, trace: Trace, allowed: Terms
    ) -> None:
        self._stream = stream
        self._attempt = attempt
        self._trace = trace
        self._allowed = allowed
        self._held: list[Chunk] = []
        self._last_token_s = time.monotonic()

    async def run(self) -> Commit | Deferral:
        """The verdict as an effect; a stream that is not committed is closed."""
        holds = self._allowed.may_escalate and self._allowed.release is not Release.EAGER
        try:
            verdict = await (self._judge() if holds else self._first())
            if verdict.verdict is Verdict.DEFER:
                await self._stream.aclose()
                return _defer(self._trace, verdict, Draft(self._attempt, self._held), self._allowed)
            if holds:
                self._trace.decide(_decision(verdict, Target.LOCAL, self._allowed))
            return await _commit(self._trace, self._attempt, self._held, self._stream)
        except EngineError as exc:
            return _unable(self._attempt, Reason.LOCAL_UNAVAILABLE, exc)

    async def _first(self) -> Review:
        """Nothing is held: the first chunk commits."""
        if await self._take(self._until_late):
            return Review(Verdict.KEEP)
        return Review(Verdict.DEFER, Reason.TTFT_EXCEEDED)

    async def _judge(self) -> Review:
        """Read and review until the policy has made up its mind."""
        while (review := policy.review(self._observe(), self._allowed)).verdict is Verdict.WAIT:
            await self._take(self._until_fed_up)
        self._attempt.confidence = review.confidence
        return review

    async def _take(self, wait: Callable[["asyncio.Task[Chunk]"], Awaitable[None]]) -> bool:
        """See the next chunk; False where ``wait`` ended before it came, and the stream with it."""
        step = asyncio.create_task(self._next())
        try:
            await wait(step)
            if not step.done():
                await asyncio.wait([step], timeout=LAST_CALL_S)
        finally:
            if not step.done():
                await _cancel(step)
        if step.cancelled():
            return False
        self._see(step.result())
        return True

    async def _next(self) -> Chunk:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            raise _unfinished() from None

    async def _until_late(self, step: "asyncio.Task[Chunk]") -> None:
        await asyncio.wait([step], timeout=_patience_s(self._trace, self._allowed))

    async def _until_fed_up(self, step: "asyncio.Task[Chunk]") -> None:
        """Until the next chunk, or until the policy has had enough of the silence."""
        while not step.done():
            seen = self._observe()
            if policy.review(seen, self._allowed).verdict is not Verdict.WAIT:
                return
            await asyncio.wait([step], timeout=policy.next_deadline_s(seen, self._allowed))

    def _see(self, chunk: Chunk) -> None:
        self._held.append(chunk)
        self._attempt.see(chunk)
        self._last_token_s = time.monotonic()

    def _observe(self) -> Observation:
        return observation(
            self._attempt,
            self._trace.request,
            elapsed_s=self._trace.judged_s,
            silence_s=time.monotonic() - self._last_token_s,
            load_s=self._trace.load_s,
        )


def observation(
    attempt: AttemptTrace, request: Request, *, elapsed_s: float = 0.0, silence_s: float = 0.0, load_s: float = 0.0
) -> Observation:
    """What the policy may know of an attempt."""
    return Observation(
        elapsed_s=elapsed_s,
        silence_s=silence_s,
        choices=attempt.tokens,
        finishes=tuple(attempt.finishes),
        has_text=attempt.has_content,
        cut_short=cut_short(attempt, request.max_tokens),
        structured=structure.structured(attempt, request),
        malformed=structure.malformed(attempt, request) if attempt.finished else structure.impossible(attempt),
        settled=request.tool_mode is ToolMode.NONE,
        most_tokens=attempt.limit_tokens,
        asked_tokens=request.max_tokens,
        decode_s=attempt.decode_s,
        load_s=load_s,
        judged=attempt.judged,
        standard=attempt.standard,
    )


def cut_short(attempt: AttemptTrace, max_tokens: int | None) -> bool:
    """Whether a choice ended for length before the length its request asked for."""
    pairs = zip(attempt.finishes, attempt.tokens, strict=True)
    return any(f is FinishReason.LENGTH and (max_tokens is None or len(t) < max_tokens) for f, t in pairs)


async def _cancel(step: "asyncio.Task[Chunk]") -> None:
    """Wait until the step is over; our own cancellation, unlike the step's, is never swallowed."""
    step.cancel()
    await asyncio.wait([step])
    if not step.cancelled():
        step.exception()  # seen: it ended by itself in the same moment
