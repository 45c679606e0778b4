"""The local try: prepare, generate, hold on probation, keep or defer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from edged.core import Chunk, Decision, FinishReason, Outcome, Reason, Release, Target
from edged.dispatch.trace import AttemptTrace, Trace
from edged.engine.host import Engine, Kept
from edged.errors import ContextOverflow, EdgedError, EngineError, NotReady, TemplateRejected
from edged.routing import policy
from edged.routing.policy import Observation, Review, Terms, Verdict


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
    def finished(self) -> bool:
        return all(finish is not None for finish in self.attempt.finishes)

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

    @property
    def is_final(self) -> bool:
        """The local engine cannot answer this even when nobody else does."""
        return self.error is not None


async def nothing() -> AsyncGenerator[Chunk, None]:
    """The rest of an answer that is already whole."""
    for chunk in ():
        yield chunk


async def attempt_local(engine: Engine, trace: Trace, allowed: Terms) -> Commit | Deferral:
    """Try the local engine under the route's terms.

    Raises: InvalidRequest (the request itself is at fault).
    """
    attempt = trace.attempt(Target.LOCAL, backend=engine.config.name, model=engine.config.name)
    try:
        prompt = await engine.prepare(trace.request)
    except ContextOverflow as exc:
        return _unable(attempt, Reason.CONTEXT_OVERFLOW, exc)
    except TemplateRejected as exc:
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
            elapsed_s=trace.elapsed_s,
        )
    )
    if decision.target is not Target.LOCAL:
        engine.release(trace.request.id)
        attempt.end(Outcome.DISCARDED)
        return Deferral(decision.reason, draft=Draft(attempt, []))
    outcome = await Probation(engine.generate(prompt), attempt, trace, allowed).run()
    if isinstance(outcome, Deferral):
        engine.release(trace.request.id)
    return outcome


async def resume_local(engine: Engine, trace: Trace, draft: Draft) -> Commit:
    """Finish a deferred answer after all, from where it stopped; it is committed at once.

    Raises: NotReady, WorkerLost.
    """
    draft.attempt.outcome = None
    if draft.finished and draft.held:
        return Commit(draft.attempt, draft.held, nothing())
    prompt = await engine.prepare(trace.request)
    kept = draft.kept if draft.held else ()
    return Commit(draft.attempt, draft.held, engine.generate(prompt, kept))


def _unable(attempt: AttemptTrace, reason: Reason, error: EdgedError) -> Deferral:
    attempt.end(Outcome.FAILED, error.code)
    return Deferral(reason, error)


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
        if not self._allowed.may_escalate or self._allowed.release is Release.EAGER:
            return await self._run_eager()
        try:
            verdict = await self._judge()
        except EngineError as exc:
            self._attempt.end(Outcome.FAILED, exc.code)
            return Deferral(Reason.LOCAL_UNAVAILABLE, exc)
        except BaseException:
            await self._stream.aclose()
            raise
        self._attempt.confidence = verdict.confidence
        decision = Decision(
            target=Target.LOCAL if verdict.verdict is Verdict.KEEP else Target.CLOUD,
            reason=verdict.reason,
            stage="review",
            confidence=verdict.confidence,
            threshold=self._threshold(verdict.reason),
        )
        self._trace.decide(decision)
        if verdict.verdict is Verdict.KEEP:
            return Commit(self._attempt, self._held, self._stream)
        await self._stream.aclose()
        self._attempt.end(Outcome.DISCARDED)
        return Deferral(verdict.reason, draft=Draft(self._attempt, self._held))

    async def _run_eager(self) -> Commit | Deferral:
        """Nothing is held: the first chunk commits. A failure before it still defers."""
        try:
            async with asyncio.timeout(self._eager_patience_s()):
                self._see(await anext(self._stream))
        except EngineError as exc:
            self._attempt.end(Outcome.FAILED, exc.code)
            return Deferral(Reason.LOCAL_UNAVAILABLE, exc)
        except TimeoutError:
            await self._stream.aclose()
            self._attempt.end(Outcome.DISCARDED)
            self._trace.decide(
                Decision(
                    target=Target.CLOUD, reason=Reason.TTFT_EXCEEDED, stage="review", threshold=self._allowed.ttft_s
                )
            )
            return Deferral(Reason.TTFT_EXCEEDED, draft=Draft(self._attempt, []))
        except BaseException:
            await self._stream.aclose()
            raise
        return Commit(self._attempt, self._held, self._stream)

    def _eager_patience_s(self) -> float | None:
        if not self._allowed.may_escalate:
            return None
        return max(0.0, self._allowed.ttft_s - self._trace.elapsed_s)

    async def _judge(self) -> Review:
        """Read and review until the policy has made up its mind."""
        while True:
            seen = self._observe()
            review = policy.review(seen, self._allowed)
            if review.verdict is not Verdict.WAIT:
                return review
            step = asyncio.ensure_future(anext(self._stream))
            try:
                await self._wait(step)
            except BaseException:
                await _cancel(step)
                raise
            if not step.done():  # the policy chose to leave in the silence
                await _cancel(step)
                return policy.review(self._observe(), self._allowed)
            self._see(step.result())

    async def _wait(self, step: "asyncio.Future[Chunk]") -> None:
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
        attempt = self._attempt
        return Observation(
            elapsed_s=self._trace.elapsed_s,
            silence_s=time.monotonic() - self._last_token_s,
            choices=attempt.tokens,
            finishes=tuple(attempt.finishes),
            has_text=any(any(texts) for texts in attempt.texts),
            cut_short=cut_short(attempt, self._trace.request.max_tokens),
        )

    def _threshold(self, reason: Reason) -> float | None:
        limits = {
            Reason.TTFT_EXCEEDED: self._allowed.ttft_s,
            Reason.ITL_EXCEEDED: self._allowed.itl_s,
        }
        return limits.get(reason, self._allowed.confidence)


def cut_short(attempt: AttemptTrace, max_tokens: int | None) -> bool:
    """Whether a choice ended for length before the length its request asked for."""
    pairs = zip(attempt.finishes, attempt.tokens, strict=True)
    return any(f is FinishReason.LENGTH and (max_tokens is None or len(t) < max_tokens) for f, t in pairs)


async def _cancel(step: "asyncio.Future[Chunk]") -> None:
    step.cancel()
    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, EdgedError):
        await step
