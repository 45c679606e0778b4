"""What the next step computes: pure, owned by the decode thread, knows neither clock nor model.

Per step every decoding sequence gets one token and one prompt gets a chunk. Prompts are finished one after another, so
that the first can answer while the second is computed, and so that a prompt finds the prefix its elder just computed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edged.engine.kv import KvOp, KvPool
from edged.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence in one batch, from position ``start`` on; ``wants_logits`` of the last one."""

    sequence: Sequence
    start: int
    tokens: tuple[int, ...]
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: cache operations first, then one decode of the rows, ``prefill_tokens`` of them prompt."""

    ops: tuple[KvOp, ...]
    rows: tuple[Row, ...]
    prefill_tokens: int = 0

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(row.sequence.id for row in self.rows)


class Scheduler:
    """Waiting, prefilling and decoding sequences over one KV pool; at most ``slots`` run at once.

    The pool has more sequence ids than that: finished prefixes stay in the others.
    """

    def __init__(self, pool: KvPool, *, slots: int, batch_tokens: int) -> None:
        self._pool = pool
        self._slots = slots
        self._batch_tokens = batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._prefilling: Sequence | None = None
        self._decoding: list[Sequence] = []
        self._ops: list[KvOp] = []

    def __repr__(self) -> str:
        return f"Scheduler(waiting={len(self._waiting)}, running={self.running}, {self._pool!r})"

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._decoding or self._ops)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens in front of a newcomer, as if nothing of them were cached."""
        ahead = sum(sequence.pending_tokens for sequence in self._waiting)
        return ahead + (self._prefilling.pending_tokens if self._prefilling else 0)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def plan(self, *, chunk_tokens: int, now_s: float) -> Plan:
        """The next step. ``chunk_tokens`` bounds the prompt share while others decode."""
        self._admit(now_s)
        rows = [Row(s, s.computed, tuple(s.tokens[s.computed :]), wants_logits=True) for s in self._decoding]
        budget = min(chunk_tokens, self._batch_tokens) if rows else self._batch_tokens
        budget = min(budget, self._batch_tokens - len(rows))
        chunk: tuple[int, ...] = ()
        if (sequence := self._prefilling) and budget > 0:
            chunk = tuple(sequence.tokens[sequence.computed : sequence.computed + budget])
            rows.append(Row(sequence, sequence.computed, chunk, wants_logits=len(chunk) == sequence.pending_tokens))
        ops, self._ops = tuple(self._ops), []
        return Plan(ops, tuple(rows), prefill_tokens=len(chunk))

    def complete(self, plan: Plan) -> list[Sequence]:
        """Account for a decoded step; returns the sequences that have logits, in batch order."""
        ready = []
        for row in plan.rows:
            sequence = row.sequence
            assert sequence.slot is not None
            self._pool.extend(sequence.slot, list(row.tokens))
            sequence.computed += len(row.tokens)
            if row.wants_logits:
                ready.append(sequence)
            if sequence is self._prefilling and row.wants_logits:
                self._prefilling = None
                self._decoding.append(sequence)
        return ready

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done; its cells stay for whoever shares the prefix."""
        if sequence.slot is not None:
            self._pool.park(sequence.slot)
        self._forget(sequence)

    def cancel(self, request_id: str) -> list[Sequence]:
        """Take out every choice of a request, waiting or running."""
        return self._remove(lambda sequence: sequence.id == request_id, keep_cells=True)

    def interrupt(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Take out sequences whose step was aborted: only what that step may have written is removed from the cache."""
        doomed = set(sequences)
        self._ops += [self._pool.rewind(s.slot) for s in doomed if s.slot is not None]
        return self._remove(doomed.__contains__, keep_cells=True)

    def fail(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Take sequences out and drop their cells with the bookkeeping (a decode failed half way)."""
        doomed = set(sequences)
        return self._remove(doomed.__contains__, keep_cells=False)

    def drop_slot(self, slot: int) -> None:
        """The real cache refused a removal: forget the slot; a sequence in it, or that may build on it, starts over."""
        self._ops += self._pool.drop(slot)
        sequence = self._prefilling
        if sequence and sequence.slot is not None and sequence.slot != slot and sequence.has_only_cached:
            self._ops += self._pool.drop(sequence.slot)
            self._restart(sequence)
        elif sequence and sequence.slot == slot:
            self._restart(sequence)

    def forget_parked(self) -> None:
        """Give back every cell no running sequence needs."""
        self._ops += self._pool.forget_parked()

    def _admit(self, now_s: float) -> None:
        if self._prefilling or not self._waiting or self.running >= self._slots:
            return
        sequence = self._waiting[0]
        lease = self._pool.acquire(sequence.tokens, tenant=sequence.tenant, total_tokens=sequence.total_tokens)
        if lease is None:
            return
        self._waiting.popleft()
        sequence.slot, sequence.computed, sequence.cached_tokens = lease.slot, lease.cached_tokens, lease.cached_tokens
        sequence.admitted_s = now_s
        self._ops += lease.ops
        self._prefilling = sequence

    def _restart(self, sequence: Sequence) -> None:
        sequence.slot, sequence.computed, sequence.cached_tokens = None, 0, 0
        self._prefilling = None
        self._waiting.appendleft(sequence)

    def _remove(self, chosen: Callable[[Sequence], bool], *, keep_cells: bool) -> list[Sequence]:
        running = [*self._decoding, *([self._prefilling] if self._prefilling else [])]
        removed = [sequence for sequence in (*self._waiting, *running) if chosen(sequence)]
        for sequence in removed:
            if sequence.slot is not None and keep_cells:
                self._pool.park(sequence.slot)
            elif sequence.slot is not None:
                self._ops += self._pool.drop(sequence.slot)
            self._forget(sequence)
        return removed

    def _forget(self, sequence: Sequence) -> None:
        sequence.slot = None
        if sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._decoding:
            self._decoding.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
