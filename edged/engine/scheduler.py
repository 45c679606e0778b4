"""What the next step computes: pure, owned by the decode thread, knows neither clock nor model.

Per step every decoding sequence gets one token and one prompt gets a chunk. Prompts are finished one after another, so
that the first can answer while the second is computed, and so that a prompt finds the prefix its elder just computed.
A much shorter prompt overtakes a long one that is being computed, within limits. Guessed tokens are verified in steps
without a prompt: there they cost the decoding sequences' own time, elsewhere the newcomer's. Options to score join a
step that has room for them whole: each stays for that one step, so nobody waits for a slot because of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

from edged.engine.kv import KvOp, KvPool, common_prefix
from edged.engine.sequence import Sequence

PATIENCE_S = 5.0
"""Whoever waited this long goes next, whatever its length or its tenant's other work."""

TILE_TOKENS = 64
"""llama.cpp's attention on a CPU takes this many rows at once (GGML_FA_TILE_Q); what is left over takes a path half as
fast: at a depth of 2,048 tokens 64 rows cost as much as 40."""

OVERTAKE_SHARE = 0.25
"""A newcomer overtakes a prompt that has this much more left to compute."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence in one batch, from position ``start`` on; ``wants_logits`` of the last one.

    The last ``drafted`` tokens are guesses; logits are wanted of each of them and of the token before them.
    ``wants_state``: of the place of the first logits the hidden state is wanted too.
    """

    sequence: Sequence
    start: int
    tokens: tuple[int, ...]
    wants_logits: bool
    drafted: int = 0
    wants_state: bool = False

    @property
    def outputs(self) -> int:
        """Of so many tokens the logits are wanted."""
        return self.drafted + self.wants_logits

    @property
    def guesses(self) -> tuple[int, ...]:
        return self.tokens[len(self.tokens) - self.drafted :]


Drafts = Callable[[Items[Sequence]], Mapping[Sequence, tuple[int, ...]]]
"""Guesses for some of the sequences that decode, each within the room its answer has beside the next token."""


def no_drafts(_sequences: Items[Sequence]) -> Mapping[Sequence, tuple[int, ...]]:
    return {}


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: cache operations first, then one decode of the rows.

    The last ``prefill_rows`` of them, ``prefill_tokens`` in all, are of sequences that do not decode yet.
    """

    ops: tuple[KvOp, ...]
    rows: tuple[Row, ...]
    prefill_tokens: int = 0
    prefill_rows: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(row.sequence.id for row in self.rows)


class Scheduler:
    """Waiting, prefilling and decoding sequences over one KV pool; at most ``slots`` run at once.

    The pool has more sequence ids than that: finished prefixes stay in the others.
    """

    def __init__(self, pool: KvPool, *, slots: int, batch_tokens: int, output_rows: int = 0) -> None:
        """A step may have logits of ``output_rows`` tokens, at least of one for each slot."""
        self._pool = pool
        self._slots = slots
        self._batch_tokens = batch_tokens
        self._output_rows = max(output_rows, slots)
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []  # the last one is computed, those before it were overtaken
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
        return len(self._decoding) + len(self._prefilling)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens in front of a newcomer, as if nothing of them were cached."""
        return sum(sequence.queued_tokens for sequence in (*self._waiting, *self._prefilling))

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def plan(self, *, chunk_tokens: int, now_s: float, drafts: Drafts = no_drafts) -> Plan:
        """The next step. ``chunk_tokens`` is about the prompt's share while others decode."""
        self._admit(now_s)
        guesses = {} if self._prefilling else drafts(self._decoding)
        rows = [_next_row(sequence, guesses.get(sequence, ())) for sequence in self._decoding]
        wanted = chunk_tokens + len(rows) if rows else self._batch_tokens
        budget = _whole_tiles(wanted, at_most=self._batch_tokens) - len(rows)
        prompts = self._prompt_rows(budget, self._output_rows - len(rows), now_s)
        ops, self._ops = tuple(self._ops), []
        prefill_tokens = sum(len(row.tokens) for row in prompts)
        return Plan(ops, (*rows, *prompts), prefill_tokens=prefill_tokens, prefill_rows=len(prompts))

    def _prompt_rows(self, budget: int, outputs: int, now_s: float) -> list[Row]:
        """A chunk of the prompt in turn; where it is the last one, options to score as well."""
        if not self._prefilling or budget <= 0:
            return []
        sequence = self._prefilling[-1]
        rows = [_prompt_row(sequence, budget, outputs)]
        if not rows[0].tokens:
            return []
        if len(rows[0].tokens) < sequence.pending_tokens:
            return rows
        for option in sorted((s for s in self._waiting if s.option), key=lambda waiting: self._turn(waiting, now_s)):
            left = budget - sum(len(row.tokens) for row in rows)
            free = outputs - _outputs(rows, all_of_them=option.wants_state)
            if self.running >= self._slots or left <= 0 or free <= 0:
                break
            if self._may_join(option, rows, left, free) and self._begin(option, now_s):
                rows.append(_prompt_row(option, left, free))
        return rows

    def _may_join(self, option: Sequence, rows: list[Row], budget: int, outputs: int) -> bool:
        """Only whole, and only if no row of the step computes what it would then compute a second time."""
        cached = self._pool.cached_prefix(option.shareable, option.tenant)
        computed = len(option.tokens) - cached
        if computed > budget or (computed if _counts_all([*rows], option) else len(option.option)) > outputs:
            return False
        prompt = option.shareable[:-1]
        return all(common_prefix(row.sequence.shareable[:-1], prompt) <= cached for row in rows)

    def complete(self, plan: Plan) -> list[Sequence]:
        """Account for a decoded step; returns the sequences that have logits, in batch order.

        Cells of guesses count as used until ``keep`` says which guesses came.
        """
        ready = []
        for row in plan.rows:
            sequence = row.sequence
            assert sequence.slot is not None
            self._pool.extend(sequence.slot, list(row.tokens))
            sequence.computed += len(row.tokens) - row.drafted
            if row.wants_logits:
                ready.append(sequence)
            if sequence in self._prefilling and row.wants_logits and not sequence.option:
                self._prefilling.remove(sequence)
                self._decoding.append(sequence)
        return ready

    def keep(self, row: Row, accepted: int) -> None:
        """The first ``accepted`` guesses of a row came; the cells of the others are given back."""
        sequence = row.sequence
        assert sequence.slot is not None
        sequence.computed += accepted
        self._ops += self._pool.trim(sequence.slot, sequence.computed)

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done; its cells stay for whoever shares the prefix."""
        if sequence.slot is not None and sequence.option:
            self._ops += self._pool.park_once(sequence.slot, sequence.prompt_tokens)
        elif sequence.slot is not None:
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
        for sequence in (*self._prefilling, *self._decoding):
            if sequence.slot == slot:
                self._restart(sequence)
            elif sequence.slot is not None and sequence.has_only_cached:
                self._ops += self._pool.drop(sequence.slot)
                self._restart(sequence)

    def forget_parked(self) -> None:
        """Give back every cell no running sequence needs."""
        self._ops += self._pool.forget_parked()

    def _admit(self, now_s: float) -> None:
        """Begin the next prompt where none is being computed, or where it may overtake the one that is."""
        if not self._waiting or self.running >= self._slots:
            return
        sequence = min(self._waiting, key=lambda waiting: self._turn(waiting, now_s))
        if self._prefilling and not self._may_overtake(sequence, self._prefilling[-1], now_s):
            return
        overtaken = self._prefilling[-1] if self._prefilling else None
        if self._begin(sequence, now_s) and overtaken:
            overtaken.overtaken_tokens += len(sequence.tokens)

    def _begin(self, sequence: Sequence, now_s: float) -> bool:
        """Give the sequence a slot, if one and its cells are to be had."""
        lease = self._pool.acquire(sequence.shareable, tenant=sequence.tenant, total_tokens=sequence.total_tokens)
        if lease is None:
            return False
        self._waiting.remove(sequence)
        sequence.slot, sequence.computed, sequence.cached_tokens = lease.slot, lease.cached_tokens, lease.cached_tokens
        sequence.admitted_s = now_s if sequence.admitted_s is None else sequence.admitted_s
        self._ops += lease.ops
        self._prefilling.append(sequence)
        return True

    def _turn(self, sequence: Sequence, now_s: float) -> tuple[bool, bool, int, int]:
        """Smaller goes first: interactive work, then the impatient, then tenants with little running, short prompts.

        Equals keep the order in which they came.
        """
        if _is_impatient(sequence, now_s):
            return (sequence.background, False, 0, 0)
        theirs = sum(other.tenant == sequence.tenant for other in (*self._decoding, *self._prefilling))
        return (sequence.background, True, theirs, sequence.pending_tokens)

    def _may_overtake(self, newcomer: Sequence, current: Sequence, now_s: float) -> bool:
        """Only a much shorter prompt, never more of them than the overtaken one is long, and nobody impatient."""
        if newcomer.background > current.background or _is_impatient(current, now_s):
            return False
        much_shorter = newcomer.pending_tokens <= OVERTAKE_SHARE * current.pending_tokens
        return much_shorter and current.overtaken_tokens + newcomer.pending_tokens <= current.prompt_tokens

    def _restart(self, sequence: Sequence) -> None:
        self._forget(sequence)
        sequence.computed = sequence.cached_tokens = 0
        self._waiting.appendleft(sequence)

    def _remove(self, chosen: Callable[[Sequence], bool], *, keep_cells: bool) -> list[Sequence]:
        removed = [s for s in (*self._waiting, *self._decoding, *self._prefilling) if chosen(s)]
        for sequence in removed:
            if sequence.slot is not None and keep_cells:
                self._pool.park(sequence.slot)
            elif sequence.slot is not None:
                self._ops += self._pool.drop(sequence.slot)
            self._forget(sequence)
        return removed

    def _forget(self, sequence: Sequence) -> None:
        sequence.slot = None
        for place in (self._prefilling, self._decoding, self._waiting):
            if sequence in place:
                place.remove(sequence)


def _next_row(sequence: Sequence, guesses: tuple[int, ...]) -> Row:
    known = tuple(sequence.tokens[sequence.computed :])
    return Row(sequence, sequence.computed, known + guesses, wants_logits=True, drafted=len(guesses))


def _prompt_row(sequence: Sequence, budget: int, outputs: int) -> Row:
    """What comes next of a prompt, or of an option behind it: of each of its places the logits are wanted."""
    start = sequence.computed
    end = min(len(sequence.tokens), start + budget)
    if not sequence.option:
        return Row(sequence, start, tuple(sequence.tokens[start:end]), wants_logits=end == len(sequence.tokens))
    last = sequence.prompt_tokens - 1
    wants_state = sequence.wants_state and start <= last < end
    if wants_state and last + 1 - start > outputs:  # every token of such a step is an output: most of them go before
        return Row(sequence, start, tuple(sequence.tokens[start:last]), wants_logits=False)
    first = max(start, last)
    end = min(end, (start if wants_state else first) + outputs)
    wanted = max(0, end - first)
    return Row(
        sequence,
        start,
        tuple(sequence.tokens[start:end]),
        wants_logits=wanted > 0,
        drafted=max(0, wanted - 1),
        wants_state=wants_state,
    )


def _outputs(rows: list[Row], *, all_of_them: bool) -> int:
    """The outputs of a step: all of its tokens where it gives states."""
    if all_of_them or any(row.wants_state for row in rows):
        return sum(len(row.tokens) for row in rows)
    return sum(row.outputs for row in rows)


def _counts_all(rows: list[Row], option: Sequence) -> bool:
    return option.wants_state or any(row.wants_state for row in rows)


def _whole_tiles(tokens: int, *, at_most: int) -> int:
    """The nearest number of rows that leaves none over; few rows stay as they are."""
    if tokens < TILE_TOKENS:
        return min(tokens, at_most)
    whole = (tokens + TILE_TOKENS // 2 - 1) // TILE_TOKENS * TILE_TOKENS
    return whole if whole <= at_most else at_most - at_most % TILE_TOKENS or at_most


def _is_impatient(sequence: Sequence, now_s: float) -> bool:
    return now_s - sequence.submitted_s >= PATIENCE_S
