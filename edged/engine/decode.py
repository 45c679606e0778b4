"""The decode thread: owns scheduler, cache and samplers; applies commands, computes a step, publishes the round."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edged.core import FinishReason
from edged.engine.answer import AnswerText, Said
from edged.engine.form import Constraint, ConstraintFailed
from edged.engine.kv import KvOp, KvPool, Trim
from edged.engine.outbox import Outbox
from edged.engine.protocol import CallRow, Emission, Event, LogLine, Params, Refused, Stats, TokenRow
from edged.engine.rates import Rates
from edged.engine.runner import DECODE_ABORTED, DECODE_NO_SPACE, DECODE_OK, Runner, Sampler
from edged.engine.scheduler import TILE_TOKENS, Plan, Row, Scheduler
from edged.engine.sequence import Sequence
from edged.engine.signals import Signal, SignalReader

STEP_TARGET_S = 0.15
"""A step with a prompt's chunk is sized to last about this long, the gap its neighbours' readers see, but never below
one tile."""

_IMPOSSIBLE = np.float32(-np.inf)


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

    answer: AnswerText
    sampler: Sampler
    constraint: Constraint | None = None
    markup: Mapping[int, bytes] = field(default_factory=dict)


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
        self._outbox = Outbox(publish)
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
            self._outbox.flush()
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
                self._add(sequences)
            case Drop(request_id):
                self._cancelled.discard(request_id)
                self._outbox.forget(request_id)
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
        if plan.prefill_tokens:
            self._outbox.flush()
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
        fitting = int((self._rates.prefill_tps or 0) * STEP_TARGET_S)
        return min(self._chunk_tokens, max(TILE_TOKENS, fitting))

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
        rows = [(i, row) for i, row in enumerate(plan.rows) if row.wants_logits]
        emissions = [emission for i, row in rows if (emission := self._emit_or_refuse(i, row)) is not None]
        begins = any(row.sequence.generated_tokens == 1 for _, row in rows)
        self._outbox.add(emissions, now_s=time.monotonic(), urgent=begins)

    def _emit_or_refuse(self, index: int, row: Row) -> Emission | None:
        """A constraint that fails ends its own request and nobody else's."""
        if row.sequence not in self._choices:
            return None  # a sibling's failure ended it in this very step
        try:
            return self._emit(index, row)
        except ConstraintFailed as exc:
            self._refuse(row.sequence.id, exc)
            return None

    def _refuse(self, request_id: str, why: ConstraintFailed) -> None:
        for sequence in self._scheduler.cancel(request_id):
            self._close(sequence)
        self._outbox.forget(request_id)
        self._publish(Refused(request_id, "engine_error", f"the answer could not be kept to its form: {why}"))

    def _emit(self, index: int, row: Row) -> Emission:
        """Choose the row's next token and say what it adds to the answer."""
        sequence, choice = row.sequence, self._choices[row.sequence]
        token, signal = self._choose(index, choice, sequence.params)
        now_s = time.monotonic()
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        sequence.tokens.append(token)
        ended = self._runner.vocabulary.is_end(token)
        said = choice.answer.feed(b"" if ended else self._piece(choice, token))
        finish = FinishReason.STOP if ended or said.stopped or self._completes(choice, token, ended=ended) else None
        if finish is None and sequence.is_full:
            finish = FinishReason.LENGTH
        tokens = () if ended else (self._token_row(token, signal),)
        if finish is None:
            return Emission(sequence.id, sequence.choice, said.text, tokens, tool_calls=_call_rows(said))
        if not said.stopped:
            last = choice.answer.finish()
            said = Said(said.text + last.text, (*said.calls, *last.calls))
            finish = FinishReason.STOP if last.stopped else finish
        if finish is FinishReason.STOP and choice.answer.calls:
            finish = FinishReason.TOOL_CALLS
        return self._finish(sequence, said, tokens, finish, now_s)

    def _choose(self, index: int, choice: _Choice, params: Params) -> tuple[int, Signal]:
        """The next token, and what the distribution said before any mask touched it. Raises: ConstraintFailed."""
        mask = choice.constraint.mask() if choice.constraint else None
        logits = self._runner.logits(index)
        look = self._signals.look(logits, top=params.top_logprobs, mask=mask)
        if mask is not None:
            np.copyto(logits, _IMPOSSIBLE, where=~mask)
        token = self._runner.sample(choice.sampler, index)
        return token, look.chosen(logits, token)

    def _completes(self, choice: _Choice, token: int, *, ended: bool) -> bool:
        """Tell the constraint what was chosen; whether nothing may follow. Raises: ConstraintFailed."""
        if choice.constraint is None or ended:
            return False
        choice.constraint.accept(token)
        if choice.constraint.complete:
            return True
        choice.constraint.prepare()
        return False

    def _piece(self, choice: _Choice, token: int) -> bytes:
        return choice.markup.get(token) or self._runner.vocabulary.piece(token)

    def _token_row(self, token: int, signal: Signal) -> TokenRow:
        piece = self._runner.vocabulary.piece
        top = tuple((piece(candidate), logprob) for candidate, logprob in signal.top)
        return TokenRow(token, piece(token), signal.logprob, signal.margin, signal.entropy, top, signal.allowed)

    def _finish(
        self, sequence: Sequence, said: Said, tokens: tuple[TokenRow, ...], finish: FinishReason, now_s: float
    ) -> Emission:
        self._scheduler.finish(sequence)
        self._close(sequence)
        assert sequence.admitted_s is not None
        assert sequence.first_token_s is not None
        return Emission(
            id=sequence.id,
            choice=sequence.choice,
            text=said.text,
            tokens=tokens,
            finish=finish.value,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=min(sequence.cached_tokens, sequence.prompt_tokens),
            completion_tokens=sequence.generated_tokens,
            queue_s=sequence.admitted_s - sequence.submitted_s,
            prefill_s=sequence.first_token_s - sequence.admitted_s,
            decode_s=now_s - sequence.first_token_s,
            tool_calls=_call_rows(said),
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
            self._outbox.forget(request_id)
            self._publish(Refused(request_id, "engine_error", f"the engine failed a step (status {status})"))

    def _add(self, sequences: tuple[Sequence, ...]) -> None:
        try:
            for sequence in sequences:
                self._open(sequence)
        except ConstraintFailed as exc:
            for sequence in sequences:
                self._close(sequence)
            self._refuse(sequences[0].id, exc)
            return
        for sequence in sequences:
            self._scheduler.add(sequence)

    def _open(self, sequence: Sequence) -> None:
        """Make a choice's parts, brought up to what an earlier try generated. Raises: ConstraintFailed."""
        blueprint, stops = sequence.blueprint, sequence.params.stop
        parser = blueprint.parser() if blueprint else None
        constraint = blueprint.constraint() if blueprint else None
        markup = blueprint.markup if blueprint else {}
        choice = _Choice(AnswerText(stops, parser), self._runner.sampler(sequence.params), constraint, markup)
        self._choices[sequence] = choice
        for token in sequence.tokens[sequence.prompt_tokens :]:
            choice.answer.feed(self._piece(choice, token))
            choice.sampler.accept(token)
            if constraint:
                constraint.accept(token)
        if constraint:
            constraint.prepare()

    def _close(self, sequence: Sequence) -> None:
        if choice := self._choices.pop(sequence, None):
            choice.sampler.close()


def _call_rows(said: Said) -> tuple[CallRow, ...]:
    return tuple(CallRow(call.index, call.id, call.name, call.arguments) for call in said.calls)
