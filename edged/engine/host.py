"""The engine as the daemon sees it: a local backend that survives its worker.

Hands each of the worker's events to the request it belongs to; the worker's life is in ``life``.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.config import ModelConfig
from edged.core import (
    Chunk,
    Completion,
    EngineSnapshot,
    EngineState,
    Request,
    Usage,
)
from edged.core.questions import OptionScores, OptionsItem
from edged.core.texts import TextsRequest, Vectors
from edged.engine import translate
from edged.engine.life import Life
from edged.engine.protocol import (
    Branch,
    Cancel,
    Counted,
    Embedded,
    Emission,
    Event,
    Heartbeat,
    Loaded,
    LoadFailed,
    LogLine,
    Params,
    Prepared,
    Refused,
    Scored,
    StepDone,
    Submit,
)
from edged.engine.residency import Residency
from edged.errors import (
    ContextOverflow,
    EdgedError,
    InvalidRequest,
    Unsupported,
    WorkerLost,
)

log = logging.getLogger(__name__)

_F32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request whose prompt lies ready in the worker."""

    request: Request
    prompt_tokens: int
    cached_tokens: int
    snapshot: EngineSnapshot


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier, cancelled try already generated of one choice."""

    tokens: tuple[int, ...] = ()
    finished: bool = False


_News = Prepared | Emission | Counted | Embedded | Scored
_Delivery = _News | EdgedError


class Engine(Life):
    """One local model. ``locate`` gives the model file's path, or raises CatalogueError or OSError, at each load."""

    def __init__(
        self, config: ModelConfig, *, threads: int, locate: Callable[[], Path], residency: Residency | None = None
    ) -> None:
        super().__init__(config, threads=threads, locate=locate, residency=residency)
        self.on_work: Callable[[], None] = lambda: None  # called when the first request comes
        self._inboxes: dict[str, asyncio.Queue[_Delivery]] = {}
        self._vocab_tokens = self._text_tokens = self._vector_values = 0

    def __repr__(self) -> str:
        return f"Engine({self.config.name}, {self.state}, in_flight={len(self._inboxes)}, {self._worker!r})"

    @property
    def in_flight(self) -> int:
        return len(self._inboxes) + self._waiting

    @property
    def context_tokens(self) -> int:
        """The most tokens of one prompt with its answer, or of one text to embed; that one is known once loaded."""
        return self._text_tokens or self.config.context_tokens

    # -- requests --

    async def prepare(self, request: Request) -> Prompt:
        """Tokenize the request's prompt in the worker, which is loaded first where it loads on demand.

        Raises: NotReady, OutOfMemory, WorkerLost, InvalidRequest, ContextOverflow, TemplateRejected.
        """
        self._check_purpose("chat")
        await self.loaded()  # from here to the inbox nothing else runs: an idle model may be unloaded
        worker = self._worker
        assert worker is not None
        self._check(request)
        inbox = self._open_inbox(request.id)
        try:
            worker.send(translate.prepare(request))
            prepared = await self._next(inbox)
            assert isinstance(prepared, Prepared)
            self._check_context(request, prepared.prompt_tokens)
        except InvalidRequest as exc:
            self.release(request.id)
            exc.param = exc.param or translate.input_param(request)
            raise
        except BaseException:
            self.release(request.id)
            raise
        snapshot = self._at_home(translate.snapshot(self.config, self.state, prepared.stats))
        return Prompt(request, prepared.prompt_tokens, prepared.cached_tokens, snapshot)

    def generate(self, prompt: Prompt, kept: tuple[Kept, ...] = ()) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks; closing the iterator stops the decode within one step.

        ``kept`` continues an earlier try: per choice, the tokens it already has.

        Raises: WorkerLost, EngineError.
        """
        request = prompt.request
        inbox = self._inboxes.get(request.id)
        chunks = self._chunks(prompt, kept or (Kept(),) * request.n, inbox)
        return _Answer(chunks, lambda: self._release(request.id, inbox))

    async def _chunks(
        self, prompt: Prompt, kept: tuple[Kept, ...], inbox: "asyncio.Queue[_Delivery] | None"
    ) -> AsyncGenerator[Chunk, None]:
        request = prompt.request
        try:
            if inbox is None or self._worker is None or self.state is not EngineState.READY:
                raise WorkerLost(f"the local model {self.config.name} no longer holds this prompt", retry_after_s=2)
            branches = tuple(Branch(i, k.tokens) for i, k in enumerate(kept) if not k.finished)
            self._worker.send(Submit(request.id, branches, self._params(prompt), request.background))
            open_choices = {branch.choice for branch in branches}
            usage = Usage(
                prompt_tokens=prompt.prompt_tokens,
                completion_tokens=sum(len(k.tokens) for k in kept if k.finished),
            )
            while open_choices:
                emission = await self._next(inbox)
                assert isinstance(emission, Emission)
                if emission.finish:
                    open_choices.discard(emission.choice)
                    usage = translate.add(usage, emission)
                yield translate.chunk(emission, usage if not open_choices else None)
        finally:
            self._release(request.id, inbox)

    async def embed(self, request: TextsRequest, *, counted: Callable[[int], None] = lambda _: None) -> Vectors:
        """A vector of each text, or a score against the query, computed in batches that others' texts share.

        ``counted`` hears how many tokens there are before any is computed. Cancelling stops the work within one batch.
        Raises: NotReady, OutOfMemory, WorkerLost, EngineError, InvalidRequest, ContextOverflow.
        """
        self._check_purpose(request.purpose)
        await self.loaded()  # as in ``prepare``
        worker = self._worker
        assert worker is not None
        self._check_texts(request)
        inbox = self._open_inbox(request.id)
        try:
            worker.send(translate.embed(request))
            parts, tokens = bytearray(), 0
            while True:
                match await self._next(inbox):
                    case Counted(tokens=tokens):
                        counted(tokens)
                    case Embedded() as part:
                        parts += part.data
                        if part.last:
                            values = len(parts) // (_F32_BYTES * len(request.texts))
                            return translate.vectors(part, bytes(parts), values=values, tokens=tokens)
        except InvalidRequest as exc:
            exc.param = exc.param or request.field
            raise
        finally:
            self._release(request.id, inbox)

    async def score(self, request: Request, items: Sequence[OptionsItem], *, wants_state: bool = False) -> OptionScores:
        """How likely each option is behind its prompt; what the prompts share is computed once.

        ``wants_state``, here or in the request: the scores come with the prompts' last hidden states.
        A prompt of this request that lies ready is given up: its id is the work's from here on.
        Cancelling stops the work within one step. Raises: NotReady, OutOfMemory, WorkerLost, EngineError,
        InvalidRequest, ContextOverflow.
        """
        self._check_purpose("chat")
        await self.loaded()  # as in ``prepare``
        worker = self._worker
        assert worker is not None
        self._check_context(request, max(translate.fewest_tokens_of(item.prompt) for item in items))
        inbox = self._inboxes[request.id] = asyncio.Queue()
        if len(self._inboxes) == 1:
            self.on_work()
        try:
            worker.send(translate.score(request, items, wants_state=wants_state))
            scored = await self._next(inbox)
            assert isinstance(scored, Scored)
            return translate.scores(scored, items)
        finally:
            self._release(request.id, inbox)

    def release(self, request_id: str) -> None:
        """Forget a prepared or running request; its slot is free within one step."""
        if self._inboxes.pop(request_id, None) is not None:
            self._used_s = time.monotonic()
            if self._worker is not None:
                self._worker.send(Cancel(request_id))

    # -- inside --

    def _open_inbox(self, request_id: str) -> "asyncio.Queue[_Delivery]":
        """Where the worker's news of a request arrive, from now on; the first one begins the model's work."""
        inbox = self._inboxes[request_id] = asyncio.Queue()
        if len(self._inboxes) == 1:
            self.on_work()
        return inbox

    def _release(self, request_id: str, inbox: "asyncio.Queue[_Delivery] | None") -> None:
        """Release the request unless its id has been prepared anew since."""
        if self._inboxes.get(request_id) is inbox:
            self.release(request_id)

    def _params(self, prompt: Prompt) -> Params:
        limit = min(self.config.max_output_tokens, translate.request_tokens(self.config) - prompt.prompt_tokens)
        return translate.params(prompt.request, self.config.sampling, limit_tokens=limit)

    async def _next(self, inbox: "asyncio.Queue[_Delivery]") -> _News:
        delivery = await inbox.get()
        if isinstance(delivery, EdgedError):
            raise delivery
        return delivery

    def _check_purpose(self, wanted: str) -> None:
        """The worker of another purpose has no answer to such a command."""
        if self.config.purpose != wanted:
            raise Unsupported(f"the model {self.config.name} has the purpose {self.config.purpose}, not {wanted}")

    def _check(self, request: Request) -> None:
        """Refuse here what would harm the worker, or keep it busy for nothing."""
        self._check_context(request, translate.fewest_tokens(request))
        for token, bias in request.sampling.logit_bias:
            self._check_token(token, "logit_bias")
            if not math.isfinite(bias):
                raise InvalidRequest(f"logit_bias: the bias of token {token} must be a number", param="logit_bias")
        if isinstance(request.input, Completion) and not isinstance(request.input.prompt, str):
            for token in request.input.prompt:
                self._check_token(token, "prompt")

    def _check_texts(self, request: TextsRequest) -> None:
        """As ``_check``."""
        if request.dimensions is not None and request.dimensions > self._vector_values:
            text = f"dimensions must be at most {self._vector_values} for the model {self.config.name}"
            raise InvalidRequest(f"{text} (got {request.dimensions})", param="dimensions", code="invalid_value")
        for i, asked in enumerate(request.texts):
            fewest = translate.fewest_tokens_of(asked)
            if fewest > self._text_tokens:
                raise ContextOverflow(
                    f"{request.field}[{i}] has {fewest} tokens or more; {self.config.name} takes at most "
                    f"{self._text_tokens} per text",
                    param=request.field,
                )
            for token in () if isinstance(asked, str) else asked:
                self._check_token(token, request.field)

    def _check_token(self, token: int, param: str) -> None:
        if not 0 <= token < self._vocab_tokens:
            limit = f"this model's token ids go from 0 to {self._vocab_tokens - 1}"
            raise InvalidRequest(f"{param}: token {token} does not exist; {limit}", param=param)

    def _check_context(self, request: Request, prompt_tokens: int) -> None:
        limit_tokens = translate.request_tokens(self.config)
        if prompt_tokens >= limit_tokens:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens or more; {self.config.name} takes at most "
                f"{limit_tokens} for prompt and answer together",
                param=translate.input_param(request),
            )

    def _end(self, why: str) -> None:
        """Nothing answers any more: say so to everybody who waits."""
        self._set_state(EngineState.DOWN)
        for inbox in self._inboxes.values():
            inbox.put_nowait(WorkerLost(why, retry_after_s=2))

    def _on_event(self, event: Event) -> None:
        match event:
            case StepDone(emissions):
                for emission in emissions:
                    self._deliver(emission.id, emission)
            case Counted() | Embedded() | Scored():
                self._deliver(event.id, event)
            case Prepared(request_id, stats=stats):
                self._stats = stats
                self._deliver(request_id, event)
            case Refused():
                self._deliver(event.id, translate.error(event))
            case Heartbeat(stats=stats):
                self._stats = stats or self._stats
            case Loaded():
                self._vocab_tokens = event.vocab_tokens
                self._text_tokens, self._vector_values = event.text_tokens, event.vector_values
                self._on_loaded(event)
            case LoadFailed(message):
                assert self._worker is not None
                self._worker.kill(f"the model cannot be loaded: {message}")
            case LogLine():
                log.log(
                    logging.getLevelNamesMapping()[event.level.upper()], "model=%s %s", self.config.name, event.text
                )

    def _deliver(self, request_id: str, delivery: _Delivery) -> None:
        if inbox := self._inboxes.get(request_id):
            inbox.put_nowait(delivery)


class _Answer(AsyncGenerator[Chunk, None]):
    """Chunks whose closing releases the request even if none was asked for: an unstarted generator runs no finally."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None], release: Callable[[], None]) -> None:
        self._chunks = chunks
        self._release = release

    async def asend(self, value: None) -> Chunk:
        return await self._chunks.asend(value)

    async def athrow(self, *args: Any) -> Chunk:
        return await self._chunks.athrow(*args)

    async def aclose(self) -> None:
        self._release()
        await self._chunks.aclose()
