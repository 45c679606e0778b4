"""The engine as the daemon sees it: a local backend that survives its worker.

Owns the worker's life (start, watch, restart with back-off) and hands each event to the request it belongs to.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edged.config import ModelConfig
from edged.core import (
    Chat,
    Chunk,
    EngineSnapshot,
    EngineState,
    FinishReason,
    Message,
    Request,
    Timings,
    Token,
    Usage,
)
from edged.engine.process import WorkerProcess
from edged.engine.protocol import (
    Branch,
    Cancel,
    Emission,
    Event,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    LogLine,
    Params,
    Prepare,
    Prepared,
    Refused,
    Shutdown,
    Stats,
    StepDone,
    Submit,
    TokenRow,
    Turn,
)
from edged.errors import (
    ContextOverflow,
    EdgedError,
    EngineError,
    InvalidRequest,
    NotReady,
    TemplateRejected,
    WorkerLost,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 30.0
_STABLE_S = 30.0
_SHUTDOWN_S = 5.0
_STUCK_FACTOR = 3
_MAX_BYTES_PER_TOKEN = 64
"""No text needs fewer tokens than its bytes over this; longer prompts are refused without tokenizing them."""


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


_Delivery = Prepared | Emission | EdgedError


class Engine:
    """One local model. ``locate`` gives the model file's path, or raises CatalogueError, each time it is loaded."""

    def __init__(self, config: ModelConfig, *, threads: int, locate: Callable[[], Path]) -> None:
        self.config = config
        self.state = EngineState.DOWN
        self.problem: str | None = None
        self.load_s: float | None = None
        self.restarts = 0
        self._threads = threads
        self._locate = locate
        self._worker: WorkerProcess | None = None
        self._inboxes: dict[str, asyncio.Queue[_Delivery]] = {}
        self._stats: Stats | None = None
        self._vocab_tokens = 0
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Engine({self.config.name}, {self.state}, in_flight={len(self._inboxes)}, {self._worker!r})"

    # -- life --

    def start(self) -> None:
        """Begin loading; ``state`` and ``changed`` tell when it is done."""
        self._set_state(EngineState.LOADING)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"engine {self.config.name}")

    async def close(self) -> None:
        """End the worker; requests in flight end with WorkerLost."""
        if self._supervisor is None:
            return
        if self._worker is not None:
            self._worker.send(Shutdown())
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor], timeout=_SHUTDOWN_S)

    async def settled(self) -> EngineState:
        """Wait until the model is loaded or known to be unavailable."""
        while self.state is EngineState.LOADING:
            await self._changed.wait()
        return self.state

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def is_stuck(self) -> bool:
        """The worker neither answers nor could be killed: nothing short of a restart of the service helps."""
        return self._worker is not None and self._worker.silent_s > _STUCK_FACTOR * self.config.heartbeat_timeout_s

    @property
    def in_flight(self) -> int:
        return len(self._inboxes)

    def snapshot(self) -> EngineSnapshot:
        """What is known of the engine right now; a stale number is possible, a wrong state is not."""
        return _snapshot(self.config, self.state, self._stats)

    # -- requests --

    async def prepare(self, request: Request) -> Prompt:
        """Tokenize the request's prompt in the worker.

        Raises: NotReady, WorkerLost, InvalidRequest, ContextOverflow, TemplateRejected.
        """
        worker = self._ready_worker()
        self._check(request)
        inbox = self._inboxes[request.id] = asyncio.Queue()
        try:
            worker.send(_prepare(request))
            prepared = await self._next(inbox)
            assert isinstance(prepared, Prepared)
            self._check_context(prepared.prompt_tokens)
        except BaseException:
            self.release(request.id)
            raise
        snapshot = _snapshot(self.config, self.state, prepared.stats)
        return Prompt(request, prepared.prompt_tokens, prepared.cached_tokens, snapshot)

    async def generate(self, prompt: Prompt, kept: tuple[Kept, ...] = ()) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks; closing the iterator stops the decode within one step.

        ``kept`` continues an earlier try: per choice, the tokens it already has.

        Raises: WorkerLost, EngineError.
        """
        request = prompt.request
        kept = kept or (Kept(),) * request.n
        inbox = self._inboxes[request.id]
        try:
            branches = tuple(Branch(i, k.tokens) for i, k in enumerate(kept) if not k.finished)
            self._ready_worker().send(Submit(request.id, branches, self._params(request, prompt.prompt_tokens)))
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
                    usage = _add(usage, emission)
                yield _chunk(emission, usage if not open_choices else None)
        finally:
            self.release(request.id)

    def release(self, request_id: str) -> None:
        """Forget a prepared or running request; its slot is free within one step."""
        if self._inboxes.pop(request_id, None) is not None and self._worker is not None:
            self._worker.send(Cancel(request_id))

    # -- inside --

    def _ready_worker(self) -> WorkerProcess:
        if self.state is not EngineState.READY or self._worker is None:
            raise NotReady(f"the local model {self.config.name} is {self.state.value}", retry_after_s=2)
        return self._worker

    async def _next(self, inbox: "asyncio.Queue[_Delivery]") -> Prepared | Emission:
        delivery = await inbox.get()
        if isinstance(delivery, EdgedError):
            raise delivery
        return delivery

    def _check(self, request: Request) -> None:
        """Refuse here what would harm the worker."""
        for token, _ in request.sampling.logit_bias:
            if not 0 <= token < self._vocab_tokens:
                limit = f"this model's token ids go from 0 to {self._vocab_tokens - 1}"
                raise InvalidRequest(f"logit_bias: token {token} does not exist; {limit}", param="logit_bias")
        if isinstance(request.input, Chat):
            size_bytes = sum(len(m.text.encode()) for m in request.input.messages if m.text)
        elif isinstance(request.input.prompt, str):
            size_bytes = len(request.input.prompt.encode())
        else:
            size_bytes = len(request.input.prompt)
            if any(not 0 <= token < self._vocab_tokens for token in request.input.prompt):
                raise InvalidRequest(f"prompt: token ids go from 0 to {self._vocab_tokens - 1}", param="prompt")
        if size_bytes > self.config.context_tokens * _MAX_BYTES_PER_TOKEN:
            self._check_context(size_bytes // _MAX_BYTES_PER_TOKEN)

    def _check_context(self, prompt_tokens: int) -> None:
        if prompt_tokens >= self.config.context_tokens:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens} tokens or more; {self.config.name} takes at most "
                f"{self.config.context_tokens} for prompt and answer together",
                param="messages",
            )

    def _params(self, request: Request, prompt_tokens: int) -> Params:
        """The request's sampling with this model's defaults filled in."""
        asked, default = request.sampling, self.config.sampling
        left = self.config.context_tokens - prompt_tokens
        return Params(
            max_tokens=min(request.max_tokens or self.config.max_output_tokens, self.config.max_output_tokens, left),
            temperature=_first(asked.temperature, default.temperature),
            top_p=_first(asked.top_p, default.top_p),
            top_k=_first(asked.top_k, default.top_k),
            min_p=_first(asked.min_p, default.min_p),
            repeat_penalty=_first(asked.repeat_penalty, default.repeat_penalty),
            presence_penalty=_first(asked.presence_penalty, 0.0),
            frequency_penalty=_first(asked.frequency_penalty, 0.0),
            logit_bias=asked.logit_bias,
            seed=asked.seed,
            stop=request.stop,
            top_logprobs=request.top_logprobs or 0,
        )

    def _set_state(self, state: EngineState) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _supervise(self) -> None:
        """Keep a worker running: start, serve, and after its end start again, slower each time it ends soon."""
        backoff_s = _BACKOFF_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            self._set_state(EngineState.LOADING)
            self.problem = await self._live()
            self._set_state(EngineState.DOWN)
            self._fail_all(WorkerLost(f"the local model {self.config.name} stopped while answering", retry_after_s=2))
            if loop.time() - started_s > _STABLE_S:
                backoff_s = _BACKOFF_FIRST_S
            log.error("model=%s worker ended: %s; next start in %.1f s", self.config.name, self.problem, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_LAST_S)
            self.restarts += 1

    async def _live(self) -> str:
        """One worker's life; returns why it ended."""
        try:
            path = await asyncio.to_thread(self._locate)
        except EdgedError as exc:
            return exc.message
        config = self.config
        load = Load(
            path=str(path),
            context_tokens=config.context_tokens,
            slots=config.slots,
            pool_tokens=config.pool_tokens,
            threads=self._threads,
            gpu_layers=config.gpu_layers,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
        )
        self._worker = await WorkerProcess.spawn(load, self._on_event)
        deadline = asyncio.get_running_loop().call_later(config.load_timeout_s, self._give_up_loading)
        try:
            return await self._worker.run(silence_s=config.heartbeat_timeout_s, busy_s=config.step_timeout_s)
        finally:
            deadline.cancel()
            self._worker, self._stats = None, None

    def _give_up_loading(self) -> None:
        if self.state is EngineState.LOADING and self._worker is not None:
            self._worker.kill(f"it did not load within {self.config.load_timeout_s:g} s")

    def _fail_all(self, error: EdgedError) -> None:
        for inbox in self._inboxes.values():
            inbox.put_nowait(error)

    def _on_event(self, event: Event) -> None:
        match event:
            case StepDone(emissions):
                for emission in emissions:
                    self._deliver(emission.id, emission)
            case Prepared(request_id, stats=stats):
                self._stats = stats
                self._deliver(request_id, event)
            case Refused():
                self._deliver(event.id, _error(event))
            case Heartbeat(stats=stats):
                self._stats = stats or self._stats
            case Loaded():
                self._on_loaded(event)
            case LoadFailed(message):
                assert self._worker is not None
                self._worker.kill(f"the model cannot be loaded: {message}")
            case LogLine():
                log.log(
                    logging.getLevelNamesMapping()[event.level.upper()], "model=%s %s", self.config.name, event.text
                )

    def _on_loaded(self, event: Loaded) -> None:
        self._vocab_tokens, self.load_s, self.problem = event.vocab_tokens, event.load_s, None
        if self.config.context_tokens > event.context_train_tokens:
            log.warning(
                "model=%s context_tokens=%d is beyond the %d it was trained for",
                self.config.name,
                self.config.context_tokens,
                event.context_train_tokens,
            )
        if event.template_note:
            log.warning("model=%s %s", self.config.name, event.template_note)
        log.info("model=%s loaded (%s) in %.2f s", self.config.name, event.description, event.load_s)
        self._set_state(EngineState.READY)

    def _deliver(self, request_id: str, delivery: _Delivery) -> None:
        if inbox := self._inboxes.get(request_id):
            inbox.put_nowait(delivery)


def _first(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _prepare(request: Request) -> Prepare:
    if isinstance(request.input, Chat):
        return Prepare(request.id, request.tenant, turns=tuple(_turn(m) for m in request.input.messages))
    prompt = request.input.prompt
    if isinstance(prompt, str):
        return Prepare(request.id, request.tenant, text=prompt)
    return Prepare(request.id, request.tenant, tokens=prompt)


def _turn(message: Message) -> Turn:
    calls = tuple((call.id, call.name, call.arguments) for call in message.tool_calls)
    return Turn(message.role.value, message.text, message.name, calls, message.tool_call_id)


def _chunk(emission: Emission, usage: Usage | None) -> Chunk:
    finish = FinishReason(emission.finish) if emission.finish else None
    timings = Timings(queue_s=emission.queue_s, prefill_s=emission.prefill_s, decode_s=emission.decode_s)
    return Chunk(
        choice=emission.choice,
        text=emission.text,
        tokens=tuple(_token(row) for row in emission.tokens),
        finish=finish,
        usage=usage,
        timings=timings if finish else None,
    )


def _token(row: TokenRow) -> Token:
    return Token(row.piece, row.logprob, margin=row.margin, entropy=row.entropy, top=row.top, id=row.id)


def _add(usage: Usage, emission: Emission) -> Usage:
    """Usage of several choices: the prompt counts once, as cached only where even the first choice found it cached."""
    return replace(
        usage,
        completion_tokens=usage.completion_tokens + emission.completion_tokens,
        cached_tokens=emission.cached_tokens if emission.choice == 0 else usage.cached_tokens,
    )


def _error(refused: Refused) -> EdgedError:
    kinds: dict[str, type[EdgedError]] = {
        TemplateRejected.code: TemplateRejected,
        ContextOverflow.code: ContextOverflow,
        InvalidRequest.code: InvalidRequest,
    }
    kind = kinds.get(refused.code, EngineError)
    return kind(refused.message, param="messages" if issubclass(kind, InvalidRequest) else None)


def _snapshot(config: ModelConfig, state: EngineState, stats: Stats | None) -> EngineSnapshot:
    if stats is None:
        return EngineSnapshot(state=state, slots=config.slots, context_tokens=config.context_tokens)
    return EngineSnapshot(
        state=state,
        slots=config.slots,
        running=stats.running,
        waiting=stats.waiting,
        context_tokens=config.context_tokens,
        queued_prompt_tokens=stats.queued_prompt_tokens,
        prefill_tps=stats.prefill_tps,
        decode_tps=stats.decode_tps,
    )
