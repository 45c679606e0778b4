"""The engine as the daemon sees it: a local backend that survives its worker.

Owns the worker's life (start, watch, restart with back-off) and hands each event to the request it belongs to.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
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
from edged.engine import gguf, memory, translate
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
    Prepared,
    Refused,
    SetThreads,
    Shutdown,
    Stats,
    StepDone,
    Submit,
)
from edged.errors import (
    ContextOverflow,
    EdgedError,
    InvalidRequest,
    NotReady,
    WorkerLost,
)

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 30.0
_STABLE_S = 30.0
_SHUTDOWN_S = 5.0
_STUCK_FACTOR = 3


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
    """One local model. ``locate`` gives the model file's path, or raises CatalogueError or OSError, at each load."""

    def __init__(self, config: ModelConfig, *, threads: int, locate: Callable[[], Path]) -> None:
        self.config = config
        self.state = EngineState.DOWN
        self.problem: str | None = None
        self.load_s: float | None = None
        self.restarts = 0
        self.on_work: Callable[[], None] = lambda: None  # called when the first request comes
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
        self._supervisor = None
        self._end(f"the local model {self.config.name} was shut down")

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
        return translate.snapshot(self.config, self.state, self._stats)

    def set_threads(self, count: int) -> None:
        """Use so many threads from the next step, and at the next load."""
        if count != self._threads:
            self._threads = count
            if self._worker is not None and self.state is EngineState.READY:
                self._worker.send(SetThreads(count))

    # -- requests --

    async def prepare(self, request: Request) -> Prompt:
        """Tokenize the request's prompt in the worker.

        Raises: NotReady, WorkerLost, InvalidRequest, ContextOverflow, TemplateRejected.
        """
        worker = self._ready_worker()
        self._check(request)
        inbox = self._inboxes[request.id] = asyncio.Queue()
        if len(self._inboxes) == 1:
            self.on_work()
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
        snapshot = translate.snapshot(self.config, self.state, prepared.stats)
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

    def release(self, request_id: str) -> None:
        """Forget a prepared or running request; its slot is free within one step."""
        if self._inboxes.pop(request_id, None) is not None and self._worker is not None:
            self._worker.send(Cancel(request_id))

    # -- inside --

    def _release(self, request_id: str, inbox: "asyncio.Queue[_Delivery] | None") -> None:
        """Release the request unless its id has been prepared anew since."""
        if self._inboxes.get(request_id) is inbox:
            self.release(request_id)

    def _params(self, prompt: Prompt) -> Params:
        limit = min(self.config.max_output_tokens, translate.request_tokens(self.config) - prompt.prompt_tokens)
        return translate.params(prompt.request, self.config.sampling, limit_tokens=limit)

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
        """Refuse here what would harm the worker, or keep it busy for nothing."""
        self._check_context(request, translate.fewest_tokens(request))
        for token, bias in request.sampling.logit_bias:
            self._check_token(token, "logit_bias")
            if not math.isfinite(bias):
                raise InvalidRequest(f"logit_bias: the bias of token {token} must be a number", param="logit_bias")
        if isinstance(request.input, Completion) and not isinstance(request.input.prompt, str):
            for token in request.input.prompt:
                self._check_token(token, "prompt")

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
            self._end(f"the local model {self.config.name} stopped while answering")
            if loop.time() - started_s > _STABLE_S:
                backoff_s = _BACKOFF_FIRST_S
            log.error("model=%s worker ended: %s; next start in %.1f s", self.config.name, self.problem, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_LAST_S)
            self.restarts += 1

    async def _live(self) -> str:
        """One worker's life; returns why it ended, or why it could not begin."""
        try:
            path = await asyncio.to_thread(self._locate)
            load = self._load(path)
            await asyncio.to_thread(self._vet, load)
            self._worker = await WorkerProcess.spawn(load, self._on_event)
        except EdgedError as exc:
            return exc.message
        except OSError as exc:
            return f"it could not be started: {exc}"
        config = self.config
        deadline = asyncio.get_running_loop().call_later(config.load_timeout_s, self._give_up_loading)
        try:
            return await self._worker.run(silence_s=config.heartbeat_timeout_s, busy_s=config.step_timeout_s)
        finally:
            deadline.cancel()
            self._worker, self._stats = None, None

    def _vet(self, load: Load) -> None:
        """Look at the file before any worker maps it. Raises: ModelFileRejected, OutOfMemory."""
        need = memory.estimate(
            self.config.name,
            gguf.inspect(Path(load.path)),
            pool_tokens=load.pool_tokens,
            sequences=load.sequences,
            batch_tokens=load.batch_tokens,
            cell_type=load.kv_format,
        )
        memory.check(need, memory.available())

    def _load(self, path: Path) -> Load:
        config = self.config
        return Load(
            path=str(path),
            context_tokens=config.context_tokens,
            slots=config.slots,
            pool_tokens=config.pool_tokens,
            kv_format=config.kv_format,
            threads=self._threads,
            gpu_layers=config.gpu_layers,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
            one_tenant=config.one_tenant,
            main_gpu=config.main_gpu,
            offload_kv=config.offload_kv,
        )

    def _give_up_loading(self) -> None:
        if self.state is EngineState.LOADING and self._worker is not None:
            self._worker.kill(f"it did not load within {self.config.load_timeout_s:g} s")

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
            case Prepared(request_id, stats=stats):
                self._stats = stats
                self._deliver(request_id, event)
            case Refused():
                self._deliver(event.id, translate.error(event))
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
        for note in event.notes:
            log.warning("model=%s %s", self.config.name, note)
        log.info("model=%s loaded (%s) in %.2f s", self.config.name, event.description, event.load_s)
        if self._worker is not None:
            self._worker.send(SetThreads(self._threads))  # what is free may have changed while it loaded
        self._set_state(EngineState.READY)

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
