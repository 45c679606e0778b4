"""The decode thread: owns scheduler, cache and samplers; applies commands, computes a step, publishes the round."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edged.chat.text import TextAssembler
from edged.core import FinishReason
from edged.engine.kv import KvOp, KvPool, Trim
from edged.engine.protocol import Emission, Event, LogLine, Params, Refused, Stats, StepDone, TokenRow
from edged.engine.rates import Rates
from edged.engine.runner import DECODE_ABORTED, DECODE_NO_SPACE, DECODE_OK, Runner, Sampler
from edged.engine.scheduler import Plan, Row, Scheduler
from edged.engine.sequence import Sequence
from edged.engine.signals import SignalReader

STEP_TARGET_S = 0.15
"""A prompt's chunk is sized so that a step with it lasts about this long: the gap its neighbours' readers see."""

_FIRST_CHUNK_TOKENS = 64
_MIN_CHUNK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Add:
    """New sequences for the scheduler, all of one request."""

    sequences: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Cancel a request."""

    id: str


@dataclass(frozen=True, slots=True)
class Threads:
    """Use so many threads from the next step on."""

    count: int


class Stop:
    """End the loop."""


Posted = Add | Drop | Threads | Stop


@dataclass(slots=True)
class _Choice:
    """What a sequence needs beyond the scheduler's view."""

    assembler: TextAssembler
    sampler: Sampler


@dataclass(frozen=True, slots=True)
class _Queued:
    """How much has been handed over, ever."""

    sequences: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, add: Add) -> "_Queued":
        return cls(len(add.sequences), sum(sequence.pending_tokens for sequence in add.sequences))

    def __add__(self, other: "_Queued") -> "_Queued":
        return _Queued(self.sequences + other.sequences, self.tokens + other.tokens)

    def __sub__(self, other: "_Queued") -> "_Queued":
        return _Queued(self.sequences - other.sequences, self.tokens - other.tokens)


class DecodeLoop:
    """One step after another until stopped. Everything but ``post``, ``stats`` and ``step_s`` belongs to its thread.

    The abort flag speaks of the step in flight and no other: ``_lock`` keeps a cancel and the start or end of a step
    apart, else a late abort would hit the next step, which computes for somebody else.
    """

    def __init__(
        self, runner: Runner, pool: KvPool, *, slots: int, chunk_tokens: int, publish: Callable[[Event], None]
    ) -> None:
        self._runner = runner
        self._pool = pool
        self._scheduler = Scheduler(pool, slots=slots, batch_tokens=runner.batch_tokens)
        self._chunk_tokens = chunk_tokens
        self._publish = publish
        self._inbox: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self._choices: dict[Sequence, _Choice] = {}
        self._signals = SignalReader(runner.vocabulary.size_tokens)
        self._rates = Rates()
        self._stopped = False
        self._in_flight: frozenset[str] = frozenset()
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()
        self._step_started_s: float | None = None
        self._posted = self._applied = _Queued()
        self._stats = self._look()

    def __repr__(self) -> str:
        return f"DecodeLoop({self._scheduler!r}, samplers={len(self._choices)})"

    # -- from the control thread --

    def post(self, command: Posted) -> None:
        """Hand over a command. A step that computes for nobody any more is aborted at once."""
        if isinstance(command, Add):
            self._posted += _Queued.of(command)
        with self._lock:
            if isinstance(command, Drop):
                self._cancelled.add(command.id)
            if isinstance(command, Stop) or (self._in_flight and self._in_flight <= self._cancelled):
                self._runner.set_abort(on=True)
        self._inbox.put(command)

    @property
    def stats(self) -> Stats:
        """The loop as it was when its current step began, and what has been posted since."""
        stats, applied = self._stats
        ahead = self._posted - applied
        return msgspec.structs.replace(
            stats,
            waiting=stats.waiting + ahead.sequences,
            queued_prompt_tokens=stats.queued_prompt_tokens + ahead.tokens,
        )

    @property
    def is_aborting(self) -> bool:
        """Whether llama.cpp was told to fail the current step, so that its complaints are no news."""
        return self._runner.is_aborting

    @property
    def step_s(self) -> float:
        """How long the current step has been running; 0 between steps."""
        started_s = self._step_started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    # -- the loop --

    def run(self) -> None:
        """Apply pending commands, advance every running sequence once, publish the round."""
        while not self._stopped:
            self._drain()
            self._step()

    def _look(self) -> "tuple[Stats, _Queued]":
        """Numbers for other threads, which must not walk over what this one changes."""
        stats = Stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            queued_prompt_tokens=self._scheduler.queued_prompt_tokens,
            used_cells=self._pool.used_cells,
            prefill_tps=self._rates.prefill_tps,
            decode_tps=self._rates.decode_tps,
        )
        return stats, self._applied

    def _drain(self) -> None:
        block = self._scheduler.is_idle
        if block:
            self._stats = self._look()
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return
            self._apply(command)
            block = False

    def _apply(self, command: Posted) -> None:
        match command:
            case Add(sequences):
                self._applied += _Queued.of(command)
                for sequence in sequences:
                    self._choices[sequence] = self._new_choice(sequence)
                    self._scheduler.add(sequence)
            case Drop(request_id):
                self._cancelled.discard(request_id)
                for sequence in self._scheduler.cancel(request_id):
                    self._close(sequence)
            case Threads(count):
                self._runner.set_threads(count)
            case Stop():
                self._stopped = True

    def _step(self) -> None:
        plan = self._scheduler.plan(chunk_tokens=self._chunk(), now_s=time.monotonic())
        self._stats = self._look()
        applied = [self._apply_op(op) for op in plan.ops]
        if not all(applied) or not plan.rows:
            return
        status, elapsed_s = self._decode(plan)
        if status == DECODE_OK:
            decode_rows = len(plan.rows) - bool(plan.prefill_tokens)
            self._rates.observe(prefill_tokens=plan.prefill_tokens, decode_rows=decode_rows, elapsed_s=elapsed_s)
            self._advance(plan)
        else:
            self._recover(plan, status)

    def _decode(self, plan: Plan) -> tuple[int, float]:
        self._step_started_s = started_s = time.monotonic()
        with self._lock:
            self._in_flight = plan.ids
            self._runner.set_abort(on=plan.ids <= self._cancelled)
        status = self._runner.decode(plan.rows)
        with self._lock:
            self._in_flight = frozenset()
        self._step_started_s = None
        return status, time.monotonic() - started_s

    def _chunk(self) -> int:
        rate = self._rates.prefill_tps
        fitting = _FIRST_CHUNK_TOKENS if rate is None else int(rate * STEP_TARGET_S)
        return min(self._chunk_tokens, max(_MIN_CHUNK_TOKENS, fitting))

    def _apply_op(self, op: KvOp) -> bool:
        """Change the real cache; where it cannot remove a part, the whole slot goes, with its bookkeeping."""
        if self._runner.apply(op):
            return True
        assert isinstance(op, Trim)
        self._runner.apply(Trim(op.slot, 0))
        self._scheduler.drop_slot(op.slot)
        return False

    def _advance(self, plan: Plan) -> None:
        self._scheduler.complete(plan)
        emissions = tuple(self._emit(i, row) for i, row in enumerate(plan.rows) if row.wants_logits)
        if emissions:
            self._publish(StepDone(emissions))

    def _emit(self, index: int, row: Row) -> Emission:
        """Choose the row's next token and say what it adds to the answer."""
        sequence, choice = row.sequence, self._choices[row.sequence]
        token = self._runner.sample(choice.sampler, index)
        now_s = time.monotonic()
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        sequence.tokens.append(token)
        ended = self._runner.vocabulary.is_end(token)
        scan = choice.assembler.feed(b"" if ended else self._runner.vocabulary.piece(token))
        text, finish = scan.text, FinishReason.STOP if ended or scan.stopped else None
        if finish is None and sequence.is_full:
            finish = FinishReason.LENGTH
        if finish is None:
            return Emission(sequence.id, sequence.choice, text, (self._token_row(index, token, sequence.params),))
        if not scan.stopped:
            last = choice.assembler.finish()
            text, finish = text + last.text, FinishReason.STOP if last.stopped else finish
        tokens = () if ended else (self._token_row(index, token, sequence.params),)
        return self._finish(sequence, text, tokens, finish, now_s)

    def _token_row(self, index: int, token: int, params: Params) -> TokenRow:
        signal = self._signals.read(self._runner.logits(index), token, top=params.top_logprobs)
        piece = self._runner.vocabulary.piece
        top = tuple((piece(candidate), logprob) for candidate, logprob in signal.top)
        return TokenRow(token, piece(token), signal.logprob, signal.margin, signal.entropy, top)

    def _finish(
        self, sequence: Sequence, text: str, tokens: tuple[TokenRow, ...], finish: FinishReason, now_s: float
    ) -> Emission:
        self._scheduler.finish(sequence)
        self._close(sequence)
        assert sequence.admitted_s is not None
        assert sequence.first_token_s is not None
        return Emission(
            id=sequence.id,
            choice=sequence.choice,
            text=text,
            tokens=tokens,
            finish=finish.value,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=min(sequence.cached_tokens, sequence.prompt_tokens),
            completion_tokens=sequence.generated_tokens,
            queue_s=sequence.admitted_s - sequence.submitted_s,
            prefill_s=sequence.first_token_s - sequence.admitted_s,
            decode_s=now_s - sequence.first_token_s,
        )

    def _recover(self, plan: Plan, status: int) -> None:
        """A step that did not compute: never try the same batch again, never keep cells nobody can vouch for."""
        if status == DECODE_NO_SPACE:
            self._publish(LogLine("warning", "no room in the KV cache: finished prefixes are dropped"))
            self._scheduler.forget_parked()
        if status == DECODE_ABORTED:
            for sequence in self._scheduler.interrupt(row.sequence for row in plan.rows):
                self._close(sequence)
            return
        failed = self._scheduler.fail(row.sequence for row in plan.rows)
        for sequence in failed:
            self._close(sequence)
        for request_id in {sequence.id for sequence in failed}:
            for sibling in self._scheduler.cancel(request_id):
                self._close(sibling)
            self._publish(Refused(request_id, "engine_error", f"the engine failed a step (status {status})"))

    def _new_choice(self, sequence: Sequence) -> _Choice:
        choice = _Choice(TextAssembler(sequence.params.stop), self._runner.sampler(sequence.params))
        for token in sequence.tokens[sequence.prompt_tokens :]:
            choice.assembler.feed(self._runner.vocabulary.piece(token))
            choice.sampler.accept(token)
        return choice

    def _close(self, sequence: Sequence) -> None:
        if choice := self._choices.pop(sequence, None):
            choice.sampler.close()
