"""The decode thread: owns scheduler, cache and samplers; applies commands, computes a step, publishes the round."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edged.engine.choices import Choices
from edged.engine.drafts import Drafter
from edged.engine.flight import Flight
from edged.engine.form import ConstraintFailed
from edged.engine.kv import KvOp, KvPool, Trim
from edged.engine.outbox import Outbox
from edged.engine.protocol import Emission, Event, LogLine, Refused, Stats
from edged.engine.rates import Rates
from edged.engine.runner import DECODE_ABORTED, DECODE_NO_SPACE, DECODE_OK, Runner
from edged.engine.scheduler import TILE_TOKENS, Plan, Row, Scheduler, no_drafts
from edged.engine.scoring import Scores, logprob, wanted
from edged.engine.sequence import Sequence
from edged.errors import EngineError

STEP_TARGET_S = 0.15
"""A step with a prompt's chunk is sized to last about this long, the gap its neighbours' readers see, but never below
one tile."""


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


@dataclass(frozen=True, slots=True)
class _Queued:
    """How much has been handed over, ever."""

    sequences: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, add: Add) -> "_Queued":
        return cls(len(add.sequences), sum(sequence.queued_tokens for sequence in add.sequences))

    def __add__(self, other: "_Queued") -> "_Queued":
        return _Queued(self.sequences + other.sequences, self.tokens + other.tokens)

    def __sub__(self, other: "_Queued") -> "_Queued":
        return _Queued(self.sequences - other.sequences, self.tokens - other.tokens)


class DecodeLoop:
    """One step after another until stopped. Everything but ``post``, ``stats`` and ``step_s`` belongs to its thread."""

    def __init__(
        self,
        runner: Runner,
        pool: KvPool,
        *,
        slots: int,
        chunk_tokens: int,
        publish: Callable[[Event], None],
        draft_rows: int = 0,
        output_rows: int = 0,
    ) -> None:
        """``draft_rows``: drafts may fill a step up to so many rows; 0 where the model cannot take back a token.

        ``output_rows``: a step may have logits of so many tokens.
        """
        self._runner = runner
        self._pool = pool
        self._scheduler = Scheduler(pool, slots=slots, batch_tokens=runner.batch_tokens, output_rows=output_rows)
        self._chunk_tokens = chunk_tokens
        self._publish = publish
        self._outbox = Outbox(publish)
        self._inbox: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self._choices = Choices(runner)
        self._scores = Scores()
        self._drafter = Drafter(most_rows=draft_rows) if draft_rows else None
        self._rates = Rates()
        self._stopped = False
        self._flight = Flight(runner)
        self._posted = self._applied = _Queued()
        self._stats = self._look()

    def __repr__(self) -> str:
        return f"DecodeLoop({self._scheduler!r}, {self._choices!r}, {self._drafter!r})"

    # -- from the control thread --

    def post(self, command: Posted) -> None:
        """Hand over a command. A step that computes for nobody any more is aborted at once."""
        match command:
            case Add():
                self._posted += _Queued.of(command)
            case Drop(request_id):
                self._flight.cancel(request_id)
            case Stop():
                self._flight.stop()
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
        return self._flight.step_s

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
                self._flight.forget(request_id)
                self._outbox.forget(request_id)
                self._scores.forget(request_id)
                for sequence in self._scheduler.cancel(request_id):
                    self._choices.close(sequence)
            case Threads(count):
                self._runner.set_threads(count)
                if self._drafter:
                    self._drafter.forget_pace()
            case Stop():
                self._stopped = True

    def _step(self) -> None:
        drafts = self._drafter.propose if self._drafter else no_drafts
        plan = self._scheduler.plan(chunk_tokens=self._chunk(), now_s=time.monotonic(), drafts=drafts)
        self._stats = self._look()
        applied = [self._apply_op(op) for op in plan.ops]
        if not all(applied) or not plan.rows:
            return
        if plan.prefill_tokens:
            self._outbox.flush()
        started_s = time.monotonic()
        status = self._flight.compute(plan.ids, lambda: self._runner.decode(plan.rows))
        decoded_s = time.monotonic()
        if status != DECODE_OK:
            self._recover(plan, status)
            return
        accepted_tokens = self._advance(plan)
        self._rates.observe(
            prefill_tokens=plan.prefill_tokens,
            decode_rows=len(plan.rows) - plan.prefill_rows,
            elapsed_s=decoded_s - started_s,
            accepted_tokens=accepted_tokens,
        )
        if self._drafter and not plan.prefill_tokens:
            plain = plan.tokens == len(plan.rows)
            self._drafter.observe(plan.tokens, time.monotonic() - started_s, plain=plain)

    def _chunk(self) -> int:
        fitting = int((self._rates.prefill_tps or 0) * STEP_TARGET_S)
        return min(self._chunk_tokens, max(TILE_TOKENS, fitting))

    def _apply_op(self, op: KvOp) -> bool:
        """Change the real cache; where it cannot remove a part, the whole slot goes, with its bookkeeping.

        Such a model cannot take back a guess either.
        """
        if self._runner.apply(op):
            return True
        assert isinstance(op, Trim)
        self._drafter = None
        self._runner.apply(Trim(op.slot, 0))
        self._scheduler.drop_slot(op.slot)
        return False

    def _advance(self, plan: Plan) -> int:
        """Choose the tokens a computed step leads to; returns how many guesses came."""
        self._scheduler.complete(plan)
        accepted_before = sum(row.sequence.accepted_tokens for row in plan.rows)
        ready = [(i, row) for i, row in enumerate(plan.rows) if row.wants_logits]
        for i, row in ready:
            if row.sequence in self._scores:
                self._score(i, row)
        rows = [(i, row) for i, row in ready if not row.sequence.option]
        emissions = [emission for i, row in rows if (emission := self._emit_or_refuse(i, row)) is not None]
        begins = any(row.sequence.generated_tokens == 1 for _, row in rows)
        self._outbox.add(emissions, now_s=time.monotonic(), urgent=begins)
        return sum(row.sequence.accepted_tokens for row in plan.rows) - accepted_before

    def _emit_or_refuse(self, index: int, row: Row) -> Emission | None:
        """A constraint that fails ends its own request and nobody else's."""
        if row.sequence not in self._choices:
            return None  # a sibling's failure ended it in this very step
        try:
            advance = self._choices.advance(index, row)
        except ConstraintFailed as exc:
            self._refuse(row.sequence.id, exc)
            return None
        if row.drafted:
            self._scheduler.keep(row, advance.accepted)
        if advance.emission.finish:
            self._scheduler.finish(row.sequence)
            self._choices.close(row.sequence)
        return advance.emission

    def _score(self, index: int, row: Row) -> None:
        """Read how likely the option's tokens were; all of them are kept as guesses that came."""
        try:
            found = [logprob(self._runner.logits(index, i), token) for i, token in enumerate(wanted(row))]
        except EngineError as exc:
            self._scheduler.fail([row.sequence])
            self._give_up(row.sequence.id, exc.message)
            return
        state = self._runner.state(index) if row.wants_state else None
        self._scheduler.keep(row, row.drafted)
        if self._scores.add(row, found, state):
            self._scheduler.finish(row.sequence)
            if scored := self._scores.close(row.sequence):
                self._publish(scored)

    def _refuse(self, request_id: str, why: ConstraintFailed) -> None:
        self._give_up(request_id, f"the answer could not be kept to its form: {why}")

    def _recover(self, plan: Plan, status: int) -> None:
        """A step that did not compute: never try the same batch again, never keep cells nobody can vouch for."""
        if status == DECODE_NO_SPACE:
            self._publish(LogLine("warning", "no room in the KV cache: finished prefixes are dropped"))
            self._scheduler.forget_parked()
        if status == DECODE_ABORTED:
            for sequence in self._scheduler.interrupt(row.sequence for row in plan.rows):
                self._choices.close(sequence)
            return
        failed = self._scheduler.fail(row.sequence for row in plan.rows)
        for sequence in failed:
            self._choices.close(sequence)
        for request_id in {sequence.id for sequence in failed}:
            self._give_up(request_id, f"the engine failed a step (status {status})")

    def _give_up(self, request_id: str, why: str) -> None:
        """Nothing more of this request, and its client hears why."""
        for sequence in self._scheduler.cancel(request_id):
            self._choices.close(sequence)
        self._scores.forget(request_id)
        self._outbox.forget(request_id)
        self._publish(Refused(request_id, "engine_error", why))

    def _add(self, sequences: tuple[Sequence, ...]) -> None:
        if sequences[0].option:
            self._scores.open(sequences)
            for sequence in sequences:
                self._scheduler.add(sequence)
            return
        try:
            for sequence in sequences:
                self._choices.open(sequence)
        except ConstraintFailed as exc:
            for sequence in sequences:
                self._choices.close(sequence)
            self._refuse(sequences[0].id, exc)
            return
        for sequence in sequences:
            self._scheduler.add(sequence)
