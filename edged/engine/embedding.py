"""The embedding thread: takes texts of several requests in turn, computes a batch, publishes what it came to.

``pick``, ``pieces`` and ``Gathered`` decide and add up; ``EmbeddingLoop`` acts.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edged.engine.decode import Drop, Stop, Threads
from edged.engine.flight import Flight
from edged.engine.protocol import TEXTS_PER_BATCH, Counted, Embed, Embedded, Event, Refused, Stats
from edged.engine.rates import Rates
from edged.errors import ContextOverflow, EdgedError, EngineError, InvalidRequest

MAX_TOTAL_TOKENS = 300_000
"""Of all texts of one request together."""

BATCH_TOKENS = 512
"""Texts share a batch up to this; a longer one is computed alone. A newcomer waits for one batch at most."""

_OK = 0
_ABORTED = 2
_Vectors = NDArray[np.float32]


class Pooling(Enum):
    """How the vectors of a text's tokens become the text's own."""

    MEAN = auto()
    CLS = auto()
    LAST = auto()
    RANK = auto()


@dataclass(slots=True, eq=False)
class Job:
    """The texts of one request, tokenized; the first ``done`` of them are computed."""

    id: str
    texts: list[list[int]]
    background: bool = False
    dimensions: int | None = None
    tenant: str = ""
    submitted_s: float = 0.0
    begun_s: float | None = None
    done: int = 0

    @property
    def left_tokens(self) -> int:
        return sum(map(len, self.texts[self.done :]))


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one text of a batch; ``slot`` is the text's place in it."""

    slot: int
    start: int
    tokens: Sequence[int]


class Runner(Protocol):
    """What the loop asks of ``embedding_runner.EmbeddingRunner``."""

    pooling: Pooling
    batch_tokens: int
    values: int

    def forget(self) -> None: ...

    def decode(self, pieces: Sequence[Piece]) -> int: ...

    def pooled(self, piece: Piece) -> _Vectors: ...

    def set_threads(self, count: int) -> None: ...

    def set_abort(self, *, on: bool) -> None: ...

    @property
    def is_aborting(self) -> bool: ...


class Tokenizer(Protocol):
    """A part of ``runner.Vocabulary``."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class Pairs(Protocol):
    """``embedding_runner.PairForm``."""

    def tokens(self, query: str, document: str) -> list[int]: ...


# -- decisions -------------------------------------------------------------------------------------------------------


def tokenized(command: Embed, vocabulary: Tokenizer, pairs: Pairs, *, text_tokens: int) -> Job:
    """Take a request's texts apart. Raises: ContextOverflow, InvalidRequest; nothing is ever cut short."""
    texts: list[list[int]] = []
    total = 0
    for i, text in enumerate(command.texts):
        tokens = _tokens(text, command.query, vocabulary, pairs)
        name = f"{command.field}[{i}]"
        if not tokens:
            raise InvalidRequest(f"{name} has no tokens", param=command.field)
        if len(tokens) > text_tokens:
            what = " together with the query" if command.query is not None else ""
            limit = f"this model takes at most {text_tokens} per text"
            raise ContextOverflow(f"{name} has {len(tokens)} tokens{what}; {limit}", param=command.field)
        total += len(tokens)
        if total > MAX_TOTAL_TOKENS:
            limit = f"one request may have {MAX_TOTAL_TOKENS} in all"
            raise ContextOverflow(
                f"{command.field}: up to {name} there are {total} tokens; {limit}", param=command.field
            )
        texts.append(tokens)
    return Job(command.id, texts, command.background, command.dimensions, command.tenant, time.monotonic())


def _tokens(text: str | tuple[int, ...], query: str | None, vocabulary: Tokenizer, pairs: Pairs) -> list[int]:
    if not isinstance(text, str):
        return list(text)
    if query is not None:
        return pairs.tokens(query, text)
    return vocabulary.tokenize(text, add_special=True, parse_special=False)


def pick(jobs: Sequence[Job], *, tokens: int, texts: int) -> list[tuple[Job, int]]:
    """The texts of the next batch, at most so many tokens and texts; the first always comes, however long it is.

    One text of each API key in turn, and of each of its requests in turn; background requests get what is left. A
    request whose next text does not fit waits for the next batch.
    """
    picked: list[tuple[Job, int]] = []
    for background in (False, True):
        turns = _lines(job for job in jobs if job.background is background)
        while turns and len(picked) < texts:
            line = turns.popleft()
            job, at = line.popleft()
            cost = len(job.texts[at])
            if not picked or cost <= tokens:
                picked.append((job, at))
                tokens -= cost
                if at + 1 < len(job.texts):
                    line.append((job, at + 1))
            if line:
                turns.append(line)
    return picked


def _lines(jobs: Iterable[Job]) -> deque[deque[tuple[Job, int]]]:
    """Each API key's requests with their next text."""
    lines: dict[str, deque[tuple[Job, int]]] = {}
    for job in jobs:
        lines.setdefault(job.tenant, deque()).append((job, job.done))
    return deque(lines.values())


def pieces(texts: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[Piece]]:
    """The texts one after another, in batches that are full but for the last."""
    batch: list[Piece] = []
    room = batch_tokens
    for slot, text in enumerate(texts):
        start = 0
        while start < len(text):
            tokens = text[start : start + room]
            batch.append(Piece(slot, start, tokens))
            start += len(tokens)
            room -= len(tokens)
            if not room:
                yield batch
                batch, room = [], batch_tokens
    if batch:
        yield batch


class Gathered:
    """The vectors of one batch of texts, added up from what their pieces came to (shape: texts x values)."""

    def __init__(self, texts: Sequence[Sequence[int]], values: int, pooling: Pooling) -> None:
        self._texts = texts
        self._pooling = pooling
        self._sums = np.zeros((len(texts), values), dtype=np.float64)

    def add(self, piece: Piece, pooled: _Vectors) -> None:
        """Each piece is pooled by itself: the first holds the first token, the last one the last."""
        if self._pooling is Pooling.MEAN:
            self._sums[piece.slot] += pooled * (len(piece.tokens) / len(self._texts[piece.slot]))
        elif self._pooling is not Pooling.CLS or not piece.start:
            self._sums[piece.slot] = pooled

    def vectors(self) -> _Vectors:
        """As the model gave them, not yet of length one. Raises: EngineError."""
        if not np.isfinite(self._sums).all():
            raise EngineError("the model computed values that are no numbers")
        return self._sums.astype(np.float32)


def normalised(vectors: _Vectors, dimensions: int | None = None) -> _Vectors:
    """The first ``dimensions`` values of each, of length one; a vector of zeros stays."""
    kept = vectors[:, :dimensions].astype(np.float64)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return (kept / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


# -- effects ---------------------------------------------------------------------------------------------------------


Posted = Job | Drop | Threads | Stop


class EmbeddingLoop:
    """One batch after another until stopped. All but ``post``, ``stats`` and ``step_s`` belongs to its thread."""

    def __init__(self, runner: Runner, publish: Callable[[Event], None]) -> None:
        self._runner = runner
        self._publish = publish
        self._inbox: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}
        self._rates = Rates()
        self._stopped = False
        self._flight = Flight(runner)
        self._stats = self._look(0)

    def __repr__(self) -> str:
        return f"EmbeddingLoop(jobs={len(self._jobs)}, {self._flight!r})"

    # -- from the control thread --

    def post(self, command: Posted) -> None:
        """Hand over a command. A batch that is computed for nobody any more is aborted at once."""
        match command:
            case Drop(request_id):
                self._flight.cancel(request_id)
            case Stop():
                self._flight.stop()
        self._inbox.put(command)

    def accept(self, job: Job) -> None:
        """Take a request on; that it is counted is said before any of it is computed."""
        self._publish(Counted(job.id, sum(map(len, job.texts))))
        self.post(job)

    @property
    def stats(self) -> Stats:
        """The loop as it was when its current batch began."""
        return self._stats

    @property
    def is_aborting(self) -> bool:
        """Whether llama.cpp was told to fail the current batch, so that its complaints are no news."""
        return self._runner.is_aborting

    @property
    def step_s(self) -> float:
        """How long the current batch has been computed; 0 between two."""
        return self._flight.step_s

    # -- the loop --

    def run(self) -> None:
        """Apply pending commands, compute one batch, publish it."""
        while not self._stopped:
            self._drain()
            if self._jobs and not self._stopped:
                self._step()

    def _look(self, running: int) -> Stats:
        return Stats(
            running=running,
            waiting=len(self._jobs) - running,
            queued_prompt_tokens=sum(job.left_tokens for job in self._jobs.values()),
            used_cells=0,
            prefill_tps=self._rates.prefill_tps,
            decode_tps=None,
        )

    def _drain(self) -> None:
        block = not self._jobs
        if block:
            self._stats = self._look(0)
        while True:
            try:
                self._apply(self._inbox.get(block=block))
            except queue.Empty:
                return
            block = False

    def _apply(self, command: Posted) -> None:
        match command:
            case Job():
                self._jobs[command.id] = command
            case Drop(request_id):
                self._flight.forget(request_id)
                self._jobs.pop(request_id, None)
            case Threads(count):
                self._runner.set_threads(count)
            case Stop():
                self._stopped = True

    def _step(self) -> None:
        budget = min(BATCH_TOKENS, self._runner.batch_tokens)
        picked = pick(list(self._jobs.values()), tokens=budget, texts=TEXTS_PER_BATCH)
        served = list(dict.fromkeys(job for job, _ in picked))
        self._stats = self._look(len(served))
        for job in served:
            job.begun_s = job.begun_s or time.monotonic()
        try:
            vectors = self._compute([job.texts[at] for job, at in picked], frozenset(job.id for job in served))
        except EdgedError as exc:
            for job in served:
                self._jobs.pop(job.id)
                self._publish(Refused(job.id, exc.code, exc.message))
            return
        if vectors is not None:
            for job in served:
                rows = [row for row, (owner, _) in enumerate(picked) if owner is job]
                self._deliver(job, vectors[rows])

    def _compute(self, texts: list[list[int]], ids: frozenset[str]) -> _Vectors | None:
        """The texts' vectors; None where nobody wants them any more. Raises: EngineError."""
        gathered = Gathered(texts, self._runner.values, self._runner.pooling)
        self._runner.forget()
        for batch in pieces(texts, self._runner.batch_tokens):
            status = self._decode(batch, ids)
            if status == _ABORTED:
                return None
            if status != _OK:
                raise EngineError(f"the engine failed a batch (status {status})")
            for piece in batch:
                gathered.add(piece, self._runner.pooled(piece))
        return gathered.vectors()

    def _decode(self, batch: list[Piece], ids: frozenset[str]) -> int:
        """A batch for nobody is not begun: an encoder does not look at the flag."""
        started_s = time.monotonic()
        status = self._flight.compute(ids, lambda: _ABORTED if self._runner.is_aborting else self._runner.decode(batch))
        if status == _OK:
            tokens = sum(len(piece.tokens) for piece in batch)
            self._rates.observe(prefill_tokens=tokens, decode_rows=0, elapsed_s=time.monotonic() - started_s)
        return status

    def _deliver(self, job: Job, vectors: _Vectors) -> None:
        """Hand a batch's share over; who was served goes to the end of the line."""
        first, now_s = job.done, time.monotonic()
        job.done += len(vectors)
        del self._jobs[job.id]
        last = job.done == len(job.texts)
        if not last:
            self._jobs[job.id] = job
        ranks = self._runner.pooling is Pooling.RANK
        found = vectors[:, :1] if ranks else normalised(vectors, job.dimensions)
        begun_s = job.begun_s or now_s
        timings = {"queue_s": begun_s - job.submitted_s, "compute_s": now_s - begun_s} if last else {}
        data = np.ascontiguousarray(found).tobytes()
        self._publish(Embedded(job.id, first, len(vectors), data, last=last, **timings))
