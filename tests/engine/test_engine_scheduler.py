"""Scheduler: what the next step computes, over seeded traffic and a cache that is checked at every step."""

import random
from dataclasses import dataclass, field

import pytest
from engine_builders import a_sequence

from edged.engine.kv import KvPool, Trim
from edged.engine.scheduler import PATIENCE_S, TILE_TOKENS, Plan, Scheduler
from edged.engine.sequence import Sequence
from edged.testing.engine import FakeCache

SLOTS, CELLS, BATCH = 3, 400, 48


@dataclass
class Bench:
    """A scheduler with a real-enough cache; ``step`` does what the decode loop does."""

    cache: FakeCache = field(default_factory=lambda: FakeCache(CELLS))
    pool: KvPool = field(default_factory=lambda: KvPool(slots=2 * SLOTS, cells=CELLS))
    chunk: int = 16
    guesses: random.Random | None = None
    finished: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.pool, slots=SLOTS, batch_tokens=BATCH)

    def step(self, *, status: str = "ok") -> Plan:
        plan = self.scheduler.plan(chunk_tokens=self.chunk, now_s=1.0, drafts=self.drafts)
        whole = [self.apply(op) for op in plan.ops]
        self.check(plan)
        if not all(whole) or not plan.rows:
            return plan
        self.note_admissions(plan)
        if status != "ok":  # a step that fails half way leaves cells behind
            for row in plan.rows:
                self.cache.write(row.sequence.slot, row.start, row.tokens[: len(row.tokens) // 2 + 1])
        if status == "fail":
            self.scheduler.fail(row.sequence for row in plan.rows)
        elif status == "abort":
            self.scheduler.interrupt(row.sequence for row in plan.rows)
        else:
            self.complete(plan)
        return plan

    def drafts(self, sequences) -> dict[Sequence, tuple[int, ...]]:
        """At random the tokens that will come, others, or both."""
        if self.guesses is None:
            return {}
        drafts = {}
        for sequence in sequences:
            count = self.guesses.randrange(min(4, sequence.room_tokens))
            right = self.guesses.randrange(5)
            said = [200 + sequence.generated_tokens + i if i < right else 9 for i in range(count)]
            drafts |= {sequence: tuple(said)} if said else {}
        return drafts

    def apply(self, op) -> bool:
        if self.cache.apply(op):
            return True
        assert isinstance(op, Trim)
        self.cache.apply(Trim(op.slot, 0))
        self.scheduler.drop_slot(op.slot)
        return False

    def check(self, plan: Plan) -> None:
        tokens = sum(len(row.tokens) for row in plan.rows)
        assert tokens <= BATCH
        assert self.scheduler.running <= SLOTS
        known = [(len(row.tokens) - row.drafted, row.sequence) for row in plan.rows]
        assert sum(count > 1 or sequence.generated_tokens == 0 for count, sequence in known) <= 1
        assert self.pool.used_cells == self.cache.used_cells or self.cache.refuses_partial
        assert self.pool._committed <= CELLS
        assert self.pool.busy_slots == self.scheduler.running

    def note_admissions(self, plan: Plan) -> None:
        self.admitted += [row.sequence for row in plan.rows if row.sequence not in self.admitted]

    def complete(self, plan: Plan) -> None:
        for row in plan.rows:
            slot = row.sequence.slot
            assert self.cache.tokens(slot) == tuple(row.sequence.tokens[: row.start])
            assert self.cache.write(slot, row.start, row.tokens)
        for sequence in self.scheduler.complete(plan):
            row = next(row for row in plan.rows if row.sequence is sequence)
            self.say(row)
            if sequence.is_full:
                self.scheduler.finish(sequence)
                self.finished.append(sequence)

    def say(self, row) -> None:
        """One token, and one more for every guess that came."""
        sequence, accepted = row.sequence, 0
        for guess in (*row.guesses, None):
            sequence.tokens.append(200 + sequence.generated_tokens)
            if guess != sequence.tokens[-1]:
                break
            accepted += 1
        if row.drafted:
            self.scheduler.keep(row, accepted)
            assert sequence.is_full or sequence.pending_tokens == 1

    def settle(self, steps: int = 2000) -> None:
        """Step until idle."""
        for _ in range(steps):
            if self.scheduler.is_idle:
                return
            self.step()
        raise AssertionError(f"not idle after {steps} steps: {self.scheduler!r}")


def traffic(draw: random.Random, count: int) -> list[Sequence]:
    stems = [[stem] * draw.randrange(1, 60) for stem in range(3)]
    return [
        a_sequence(
            [*draw.choice(stems), *(draw.randrange(9) for _ in range(draw.randrange(1, 70)))],
            id=f"r{i // 2}",
            choice=i % 2,
            tenant=draw.choice("ab"),
            max_tokens=draw.randrange(1, 20),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_every_sequence_finishes_with_its_own_tokens(seed: int) -> None:
    """Whatever arrives when, each sequence gets exactly its tokens, and every slot and cell is accounted for."""
    draw = random.Random(seed)
    bench, arriving = Bench(chunk=draw.randrange(1, 2 * BATCH), guesses=random.Random(seed)), traffic(draw, 30)
    total = len(arriving)
    while arriving or not bench.scheduler.is_idle:
        for _ in range(min(len(arriving), draw.randrange(4))):
            bench.scheduler.add(arriving.pop(0))
        bench.step()
    assert len(bench.finished) == total
    assert all(s.generated_tokens == s.params.max_tokens for s in bench.finished)
    assert bench.pool.busy_slots == 0


@pytest.mark.parametrize("seed", range(120))
def test_cancel_failure_and_abort_leave_nothing_behind(seed: int) -> None:
    """At any step a request may be cancelled or a decode fail: mirror and cache stay one, everybody else finishes."""
    draw = random.Random(seed)
    bench, arriving = Bench(guesses=random.Random(seed)), traffic(draw, 24)
    bench.cache.refuses_partial = draw.random() < 0.3
    removed: set[str] = set()
    while arriving or not bench.scheduler.is_idle:
        for _ in range(min(len(arriving), draw.randrange(4))):
            bench.scheduler.add(arriving.pop(0))
        if draw.random() < 0.1:
            request = f"r{draw.randrange(12)}"
            removed |= {s.id for s in bench.scheduler.cancel(request)}
        status = draw.choices(["ok", "fail", "abort"], [20, 1, 1])[0]
        plan = bench.step(status=status)
        if status != "ok":
            removed |= plan.ids
    bench.step()
    kept = [s for s in bench.finished if s.id not in removed]
    assert all(s.generated_tokens == s.params.max_tokens for s in kept)
    assert {s.id for s in bench.finished} | removed == {f"r{i}" for i in range(12)}
    assert bench.scheduler.running == bench.scheduler.waiting == bench.pool.busy_slots == 0
    for slot in range(2 * SLOTS):
        assert bench.pool.tokens(slot) == bench.cache.tokens(slot)


def in_order(bench: Bench, *sequences: Sequence) -> list[str]:
    """The order in which sequences that came together got their first token."""
    for sequence in sequences:
        bench.scheduler.add(sequence)
    began: list[str] = []
    while not bench.scheduler.is_idle:
        plan = bench.step()
        began += [row.sequence.id for row in plan.rows if row.wants_logits and row.sequence.id not in began]
    return began


def test_interactive_work_goes_before_background_work() -> None:
    """A route's background traffic waits while anybody interactive does."""
    slow, quick = a_sequence([1] * 5, id="slow"), a_sequence([2] * 40, id="quick")
    slow.background = True
    assert in_order(Bench(), slow, quick) == ["quick", "slow"]


def test_equals_are_served_in_the_order_they_came() -> None:
    assert in_order(Bench(), *(a_sequence([i] * 20, id=str(i)) for i in range(5))) == list("01234")


def test_of_those_waiting_the_short_prompt_goes_first() -> None:
    assert in_order(Bench(), a_sequence([1] * 90, id="long"), a_sequence([2] * 9, id="short")) == ["short", "long"]


def test_a_short_prompt_overtakes_a_long_one_that_is_being_computed() -> None:
    """It does not wait for thousands of tokens of somebody else's."""
    bench, long = Bench(), a_sequence([1] * 200, id="long")
    bench.scheduler.add(long)
    bench.step()
    assert in_order(bench, a_sequence([2] * 9, id="short")) == ["short", "long"]


def test_a_prompt_of_like_length_does_not_overtake() -> None:
    """Finishing one after another is better for both."""
    bench = Bench()
    bench.scheduler.add(a_sequence([1] * 150, id="first"))
    bench.step()
    assert in_order(bench, a_sequence([2] * 90, id="second")) == ["first", "second"]


def test_nobody_is_overtaken_without_end() -> None:
    """Overtakers together are no longer than the prompt they overtake."""
    bench, long = Bench(), a_sequence([1] * 200, id="long")
    bench.scheduler.add(long)
    bench.step()
    steps = 0
    while long.generated_tokens == 0 and steps < 100:
        bench.scheduler.add(a_sequence([steps % 9] * 30, id=f"s{steps}", max_tokens=1))
        bench.step()
        steps += 1
    assert long.overtaken_tokens <= 200
    assert steps < 30


def test_one_tenant_does_not_starve_another() -> None:
    """A tenant with much running waits for one with none."""
    bench = Bench()
    for i in range(2):
        bench.scheduler.add(a_sequence([i] * 5, id=f"busy{i}", tenant="a", max_tokens=50))
    for _ in range(4):
        bench.step()
    more = a_sequence([7] * 5, id="more", tenant="a", max_tokens=2)
    other = a_sequence([8] * 30, id="other", tenant="b", max_tokens=2)
    assert [name for name in in_order(bench, more, other) if name in ("more", "other")] == ["other", "more"]


def test_whoever_waited_long_goes_next_whatever_its_length() -> None:
    """Short prompts that keep coming cannot hold a long one off for ever."""
    bench, long = Bench(), a_sequence([1] * 90, id="long")
    long.submitted_s = 1.0 - PATIENCE_S
    recent = a_sequence([2] * 9, id="recent")
    recent.submitted_s = 1.0
    assert in_order(bench, long, recent) == ["long", "recent"]


def test_a_prompt_is_computed_between_its_neighbours_tokens() -> None:
    """While one decodes, a long prompt advances by one chunk a step, and the decoder loses no step."""
    bench = Bench(chunk=8)
    bench.scheduler.add(a_sequence([1] * 4, id="old", max_tokens=50))
    bench.step()
    bench.scheduler.add(a_sequence([2] * 40, id="new"))
    for _ in range(5):
        plan = bench.step()
        assert [len(row.tokens) for row in plan.rows] == [1, 8]
    assert bench.step().prefill_tokens == 0


def test_an_idle_engine_takes_the_whole_batch() -> None:
    """With nobody to hold up, a prompt is computed as fast as the batch allows."""
    bench = Bench(chunk=8)
    bench.scheduler.add(a_sequence([2] * 60))
    assert bench.step().prefill_tokens == BATCH


def test_a_second_choice_shares_the_first_ones_prompt() -> None:
    """n choices compute their prompt once."""
    bench = Bench()
    for choice in range(3):
        bench.scheduler.add(a_sequence([3] * 40, choice=choice, max_tokens=2))
    bench.settle()
    assert [s.cached_tokens for s in bench.finished] == [0, 39, 39]


def test_failed_sequences_lose_their_cells_with_the_bookkeeping() -> None:
    """After a failed decode the next request with the same prompt computes all of it (A15)."""
    bench = Bench()
    bench.scheduler.add(a_sequence([4] * 20))
    bench.step(status="fail")
    assert bench.pool.used_cells == 0
    again = a_sequence([4] * 20)
    bench.scheduler.add(again)
    bench.settle()
    assert again.cached_tokens == 0


def test_an_aborted_prompt_keeps_what_was_computed() -> None:
    """A cancel in the middle of a prompt costs only the step it hit."""
    bench = Bench()
    bench.scheduler.add(a_sequence([5] * 100, id="long"))
    bench.step()
    bench.step(status="abort")
    again = a_sequence([5] * 100, id="again", max_tokens=1)
    bench.scheduler.add(again)
    bench.settle()
    assert again.cached_tokens == BATCH


def test_a_refused_removal_starts_the_prompt_over() -> None:
    """Where the model cannot remove a part of a slot, the whole slot goes and the prompt is computed from the start."""
    bench = Bench()
    bench.scheduler.add(a_sequence([6] * 20, max_tokens=2))
    bench.settle()
    bench.cache.refuses_partial = True
    again = a_sequence([*([6] * 18), 7], max_tokens=2)
    bench.scheduler.add(again)
    bench.settle()
    assert again.cached_tokens == 0
    assert bench.finished[-1] is again


def test_the_queue_ahead_is_counted_in_prompt_tokens() -> None:
    """What a newcomer has to wait for: waiting prompts and the rest of the one being computed."""
    bench = Bench()
    bench.scheduler.add(a_sequence([1] * 60, id="a"))
    bench.scheduler.add(a_sequence([2] * 70, id="b"))
    assert bench.scheduler.queued_prompt_tokens == 130
    bench.step()
    assert bench.scheduler.queued_prompt_tokens == 60 - BATCH + 70


def a_scheduler(*, slots: int) -> Scheduler:
    return Scheduler(KvPool(slots=2 * slots, cells=100_000), slots=slots, batch_tokens=256 + slots)


def run_step(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan(chunk_tokens=TILE_TOKENS, now_s=1.0)
    for sequence in scheduler.complete(plan):
        sequence.tokens.append(7)
    return plan


@pytest.mark.parametrize("decoding", [1, 8, 31, 40, 63])
def test_a_step_with_a_prompt_fills_whole_tiles_and_always_advances_the_prompt(decoding):
    """Rows beyond a whole tile are slow ones; however many streams run, the prompt gets at least half a tile."""
    scheduler = a_scheduler(slots=decoding + 1)
    for index in range(decoding):
        scheduler.add(a_sequence([index + 5] * 3, id=f"running-{index}", max_tokens=500))
        run_step(scheduler)
    scheduler.add(a_sequence([2] * 1000, id="new"))
    plan = run_step(scheduler)
    assert sum(len(row.tokens) for row in plan.rows) % TILE_TOKENS == 0
    assert plan.prefill_tokens >= TILE_TOKENS // 2


def test_a_prompt_alone_fills_whole_tiles_of_the_batch():
    """The batch has room for every slot beside the chunk; a lone prompt does not use that rest."""
    scheduler = a_scheduler(slots=8)
    scheduler.add(a_sequence([2] * 1000, id="new"))
    assert run_step(scheduler).prefill_tokens == 256
