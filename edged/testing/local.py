"""A local engine made of scripts: the dispatcher's view of ``engine.host.Engine``, with no worker and no model.

    engine = ScriptedEngine()
    engine.script(text="the answer is 4", logprob=-0.05)    # for the next prompt
    engine.script(text="word " * 40, fail_after=3)          # for the one after
    ...                                                     # every further one is answered by ``engine.default``

``engine.steps`` is the log of every token computed; ``engine.in_flight`` is zero when nothing was leaked.
"""

import asyncio
import itertools
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edged.config import ModelConfig
from edged.core import Chunk, EngineSnapshot, EngineState, FinishReason, Request, Timings, Token, ToolCallDelta, Usage
from edged.core.questions import OptionScores, OptionsItem
from edged.engine.host import Engine, Kept, Prompt
from edged.errors import EdgedError, OutOfMemory, WorkerLost

_STATE = bytes(16)
"""A hidden state of four numbers, all zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One scripted local answer, word by word, the same in every choice or one text each; ``calls`` follow the text.

    ``logprob`` is every token's, or one each (the last one goes on). Timing: ``prepare_delay_s``,
    ``first_token_delay_s``, ``token_delay_s``. Faults: ``refusal`` instead of a prepared prompt; after ``fail_after``
    tokens ``error``, after ``hang_after`` silence, after ``vanish_after`` an end without a finish. ``fresh_only``: a
    resumed answer meets none of them.

    Where options are scored: ``odds`` are the log-probabilities of each item's options (the last item's go on), unset
    the first option is nearly certain; an item counts as a token of the faults.
    """

    text: str | Sequence[str] = "a quiet local answer"
    logprob: float | Sequence[float] = -0.05
    calls: Sequence[tuple[str, str]] = ()
    finish: FinishReason = FinishReason.STOP
    prompt_tokens: int = 8
    cached_tokens: int = 0
    refusal: EdgedError | None = None
    prepare_delay_s: float = 0.0
    first_token_delay_s: float = 0.0
    token_delay_s: float = 0.0
    fail_after: int | None = None
    hang_after: int | None = None
    vanish_after: int | None = None
    error: EdgedError = field(default_factory=lambda: WorkerLost("the local model stopped while answering"))
    fresh_only: bool = True
    odds: Sequence[Sequence[float]] = ()

    def logprobs(self, place: int, options: int) -> tuple[tuple[float, ...], ...]:
        """Of each option of an item; each option is one token."""
        if not self.odds:
            return tuple((-0.01,) if option == 0 else (-8.0,) for option in range(options))
        return tuple((value,) for value in self.odds[min(place, len(self.odds) - 1)])

    def tokens(self, choice: int) -> tuple[Token, ...]:
        text = self.text if isinstance(self.text, str) else self.text[choice]
        pieces = re.findall(r"\s*\S+|\s+$", text)
        return tuple(Token(p.encode(), self._logprob(i), id=i + 1) for i, p in enumerate(pieces))

    def deltas(self, choice: int) -> tuple[ToolCallDelta, ...]:
        """Each call in two deltas."""
        return tuple(
            delta
            for index, (name, arguments) in enumerate(self.calls)
            for delta in (
                ToolCallDelta(index, id=f"call_local{choice}{index}", name=name),
                ToolCallDelta(index, arguments=arguments),
            )
        )

    @property
    def ending(self) -> FinishReason:
        return FinishReason.TOOL_CALLS if self.calls and self.finish is FinishReason.STOP else self.finish

    def _logprob(self, index: int) -> float:
        if isinstance(self.logprob, float | int):
            return float(self.logprob)
        return self.logprob[min(index, len(self.logprob) - 1)]


@dataclass(frozen=True, slots=True)
class Step:
    """One token computed for one choice of one request; a resumed request's id ends in ``.resumed``."""

    request_id: str
    choice: int
    index: int


class ScriptedEngine(Engine):
    """Answers from scripts. ``worker`` is what ``snapshot`` and every prompt report of the worker.

    With its state UNLOADED it loads when asked, in ``load_takes_s``, or not, with ``load_error``.
    """

    def __init__(self, name: str = "small", *, default: Script | None = None, **config: Any) -> None:
        settings = {"context_tokens": 256, "slots": 2, **config}
        super().__init__(
            ModelConfig(name=name, file=Path("scripted.gguf"), **settings),
            threads=1,
            locate=lambda: Path("scripted.gguf"),
        )
        self.default = default or Script()
        self.state = EngineState.READY
        self.worker: dict[str, Any] = {}
        self.load_takes_s = 0.0
        self.load_error: EdgedError | None = None
        self.steps: list[Step] = []
        self.prepared: list[str] = []
        self._queue: deque[Script] = deque()
        self._scripts: dict[str, Script] = {}
        self._resumable: dict[str, Script] = {}

    def __repr__(self) -> str:
        return f"ScriptedEngine({self.config.name}, {self.state}, in_flight={self.in_flight}, steps={len(self.steps)})"

    def script(self, script: Script | None = None, **fields: Any) -> None:
        """Script the answer to the next prompt that has none yet."""
        self._queue.append(script or Script(**fields))

    @property
    def in_flight(self) -> int:
        return len(self._scripts) + self._waiting

    def load(self) -> None:
        if self.state is EngineState.UNLOADED:
            super().load()
            asyncio.get_running_loop().call_later(self.load_takes_s, self._be_loaded)

    def _be_loaded(self) -> None:
        self._refusal = self.load_error if isinstance(self.load_error, OutOfMemory) else None
        self._asked_s = None
        self.loads.note(self.load_takes_s)
        self._set_state(EngineState.DOWN if self.load_error else EngineState.READY)

    def snapshot(self) -> EngineSnapshot:
        size = {"slots": self.config.slots, "context_tokens": self.config.context_tokens}
        return self._at_home(EngineSnapshot(state=self.state, **{**size, **self.worker}))

    async def prepare(self, request: Request) -> Prompt:
        await self.loaded()
        if request.id in self.prepared:
            raise AssertionError(f"{request.id} is prepared twice: an old try's last step could reach the new one")
        self.prepared.append(request.id)
        script = self._scripts[request.id] = self._choose(request.id)
        try:
            await asyncio.sleep(script.prepare_delay_s)
            if script.refusal is not None:
                raise script.refusal
        except BaseException:
            self.release(request.id)
            raise
        return Prompt(request, script.prompt_tokens, script.cached_tokens, self.snapshot())

    async def generate(self, prompt: Prompt, kept: tuple[Kept, ...] = ()) -> AsyncGenerator[Chunk, None]:
        request, script = prompt.request, self._scripts[prompt.request.id]
        kept = kept or (Kept(),) * request.n
        places = {choice: len(k.tokens) for choice, k in enumerate(kept) if not k.finished}
        assert all(k.tokens == tuple(range(1, len(k.tokens) + 1)) for k in kept), "what is kept is not what was said"
        faulty = not (script.fresh_only and request.id.endswith(".resumed"))
        total = sum(len(k.tokens) for k in kept if k.finished)
        try:
            await asyncio.sleep(script.first_token_delay_s)
            for place in itertools.count(min(places.values(), default=0)):
                if faulty and place == script.vanish_after:
                    return
                if faulty:
                    await _meet_fault(script, place)
                for choice in [c for c, at in places.items() if at == place]:
                    await asyncio.sleep(script.token_delay_s)
                    await _hops()
                    chunk = self._step(request, script, choice, place)
                    places[choice] += 1
                    if chunk.finish is not None:
                        del places[choice]
                        total += place + len(chunk.tokens)
                    usage = Usage(prompt_tokens=prompt.prompt_tokens, completion_tokens=total)
                    yield chunk if places else _last(chunk, usage)
                if not places:
                    return
        finally:
            self.release(request.id)

    async def score(self, request: Request, items: Sequence[OptionsItem], *, wants_state: bool = False) -> OptionScores:
        script = self._scripts.get(request.id) or self._choose(request.id)
        self._scripts[request.id] = script
        faulty = not (script.fresh_only and request.id.endswith(".resumed"))
        logprobs = []
        try:
            await asyncio.sleep(script.first_token_delay_s)
            for place, item in enumerate(items):
                if faulty:
                    await _meet_fault(script, place)
                await asyncio.sleep(script.token_delay_s)
                await _hops()
                self.steps.append(Step(request.id, 0, place))
                logprobs.append(script.logprobs(place, len(item.options)))
        finally:
            self.release(request.id)
        tokens = script.prompt_tokens + sum(len(item.options) for item in items)
        timings = Timings(decode_s=0.001)
        states = tuple(_STATE for _ in items) if wants_state else None
        return OptionScores(logprobs=tuple(logprobs), usage=Usage(prompt_tokens=tokens), timings=timings, states=states)

    def release(self, request_id: str) -> None:
        self._scripts.pop(request_id, None)

    def _choose(self, request_id: str) -> Script:
        """A resumed answer goes on with the script it began with."""
        original = request_id.removesuffix(".resumed")
        if original not in self._resumable:
            self._resumable[original] = self._queue.popleft() if self._queue else self.default
        return self._resumable[original]

    def _step(self, request: Request, script: Script, choice: int, place: int) -> Chunk:
        limit = request.max_tokens or self.config.max_output_tokens
        tokens = script.tokens(choice)
        if place == len(tokens):
            return Chunk(choice=choice, tool_calls=script.deltas(choice), finish=script.ending)
        self.steps.append(Step(request.id, choice, place))
        token = tokens[place]
        finish = FinishReason.LENGTH if place + 1 >= limit else None
        return Chunk(choice=choice, text=token.piece.decode(), tokens=(token,), finish=finish)


async def _hops() -> None:
    """A token of the real engine passes socket, frame and inbox: one turn of the loop each."""
    for _ in range(3):
        await asyncio.sleep(0)


async def _meet_fault(script: Script, place: int) -> None:
    if place == script.fail_after:
        raise script.error
    if place == script.hang_after:
        await asyncio.Event().wait()


def _last(chunk: Chunk, usage: Usage) -> Chunk:
    return replace(chunk, usage=usage, timings=Timings(decode_s=0.001))
