"""A local answer that is chosen, not generated: the options of one or more questions are scored and judged."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edged.core import Chat, Chunk, Completion, FinishReason, OutputFormat, Request, Timings, Usage
from edged.core.questions import Judges, OptionScores, OptionsItem, Standard, Verdict
from edged.dispatch.trace import AttemptTrace
from edged.engine.host import Engine, Kept, Prompt
from edged.engine.scoring import MAX_OPTIONS
from edged.errors import InvalidRequest
from edged.routing.policy import is_trusted

UNTRUSTED = float("inf")
"""The threshold of a question that this model's answer to is not to be trusted at all."""


@dataclass(slots=True)
class Sitting:
    """One question before the local model, and what came of it once it has been scored."""

    standard: Standard
    item: OptionsItem
    verdict: Verdict | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()
    state: bytes | None = None

    @property
    def threshold(self) -> float:
        return UNTRUSTED if self.standard.threshold is None else self.standard.threshold

    @property
    def is_decided(self) -> bool:
        """The local answer is good enough to be served."""
        return self.verdict is not None and is_trusted(self.verdict.confidence, self.threshold)


class Scoring:
    """Where ``local.Source`` is asked for an answer. ``asked`` is the request, as errors should speak of it.

    ``write`` is the answer's text, from the place of the chosen option of each question.
    """

    answer_tokens: int | None = 1
    """Nothing is decoded; the work on all options is in the estimate of the prompt."""

    def __init__(
        self, asked: Request, sittings: Sequence[Sitting], judges: Judges, *, write: Callable[[Sequence[int]], str]
    ) -> None:
        self.sittings = tuple(sittings)
        self._asked = asked
        self._judges = judges
        self._write = write

    def __repr__(self) -> str:
        return f"Scoring({self._asked.id}, {sum(s.verdict is not None for s in self.sittings)}/{len(self.sittings)})"

    @property
    def is_judged(self) -> bool:
        return all(sitting.verdict is not None for sitting in self.sittings)

    @property
    def confidence(self) -> float | None:
        """The least of all questions; None before they are judged."""
        return min((sitting.verdict.confidence for sitting in self.sittings if sitting.verdict), default=None)

    async def prepare(self, engine: Engine, request: Request) -> Prompt:
        """Have the longest prompt tokenized; the rest of the work is estimated by it."""
        items = [sitting.item for sitting in self.sittings]
        longest = max(items, key=_chars)
        prompt = await engine.prepare(self._put(request.id, longest.prompt))
        more_chars = _shared_out(items) - _chars(longest) + sum(len(text) for item in items for text in item.options)
        more_tokens = more_chars * prompt.prompt_tokens // max(1, _chars(longest))
        return Prompt(request, prompt.prompt_tokens + max(0, more_tokens), prompt.cached_tokens, prompt.snapshot)

    async def generate(
        self, engine: Engine, prompt: Prompt, attempt: AttemptTrace, kept: tuple[Kept, ...] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """The whole answer in one chunk; closing the iterator stops the scoring within one step."""
        assert not any(choice.tokens for choice in kept), "nothing of a chosen answer is there before all of it"
        attempt.raw_wait_s = None  # it is foreseen for a prompt; this is more than one
        usage, timings = Usage(), Timings()
        for batch in _batches(self.sittings):
            scores = await self._scored(engine, prompt.request.id, batch)
            usage, timings = _added(usage, scores.usage), _later(timings, scores.timings)
        attempt.judged, attempt.standard = self._weakest()
        places = [sitting.verdict.best for sitting in self.sittings if sitting.verdict]
        yield Chunk(text=self._write(places), finish=FinishReason.STOP, usage=self._counted(usage), timings=timings)

    async def _scored(self, engine: Engine, engine_id: str, batch: Sequence[Sitting]) -> OptionScores:
        asked = self._put(engine_id, batch[0].item.prompt)
        wants_state = any(sitting.standard.wants_state for sitting in batch)
        scores = await engine.score(asked, [sitting.item for sitting in batch], wants_state=wants_state)
        states = scores.states or (None,) * len(batch)
        for sitting, logprobs, state in zip(batch, scores.logprobs, states, strict=True):
            sitting.logprobs = logprobs
            sitting.state = state if sitting.standard.wants_state else None
            sitting.verdict = self._judges.judge(
                self._asked, sitting.standard, logprobs, model=engine.config.name, state=sitting.state
            )
        return scores

    def _put(self, engine_id: str, prompt: str | Chat) -> Request:
        """The request as the engine is asked: free of any form, since nothing is generated."""
        put = prompt if isinstance(prompt, Chat) else Completion(prompt)
        return replace(self._asked, id=engine_id, input=put, output=OutputFormat())

    def _weakest(self) -> tuple[float, float]:
        """The least confidence of what is undecided, or of everything, and what it is held against."""
        pool = [sitting for sitting in self.sittings if not sitting.is_decided] or self.sittings
        return min((sitting.verdict.confidence, sitting.threshold) for sitting in pool if sitting.verdict)

    def _counted(self, usage: Usage) -> Usage:
        """A chat's answer has tokens of its own; those of the options that were not chosen are in no count of it."""
        if not isinstance(self._asked.input, Chat):
            return usage
        tried = sum(len(tokens) for sitting in self.sittings for tokens in sitting.logprobs)
        chosen = sum(len(s.logprobs[s.verdict.best]) for s in self.sittings if s.verdict)
        return replace(usage, prompt_tokens=usage.prompt_tokens - tried, completion_tokens=chosen)


def _chars(item: OptionsItem) -> int:
    if isinstance(item.prompt, str):
        return len(item.prompt)
    return sum(len(message.text or "") for message in item.prompt.messages)


def _shared_out(items: Sequence[OptionsItem]) -> int:
    """Characters of all prompts, with what they begin with in common counted once."""
    texts = [item.prompt for item in items if isinstance(item.prompt, str)]
    if len(texts) < len(items) or len(texts) == 1:
        return sum(map(_chars, items))
    first, last = min(texts), max(texts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return sum(map(len, texts)) - shared * (len(texts) - 1)


def _batches(sittings: Sequence[Sitting]) -> Iterator[list[Sitting]]:
    """As many questions at a time as the engine takes options."""
    batch: list[Sitting] = []
    room = MAX_OPTIONS
    for sitting in sittings:
        count = len(sitting.item.options)
        if count > MAX_OPTIONS:
            text = f"questions: a question may have at most {MAX_OPTIONS} options (got {count})"
            raise InvalidRequest(text, param="questions")
        if count > room:
            yield batch
            batch, room = [], MAX_OPTIONS
        batch.append(sitting)
        room -= count
    yield batch


def _added(usage: Usage, more: Usage) -> Usage:
    return replace(
        usage,
        prompt_tokens=usage.prompt_tokens + more.prompt_tokens,
        cached_tokens=usage.cached_tokens + more.cached_tokens,
    )


def _later(timings: Timings, more: Timings) -> Timings:
    return Timings(
        queue_s=timings.queue_s + more.queue_s,
        prefill_s=timings.prefill_s + more.prefill_s,
        decode_s=timings.decode_s + more.decode_s,
    )
