"""KvPool: the mirror of the real cache, against a cache written the obvious way."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.engine.kv import ADOPT_TAIL_TOKENS, Copy, KvPool, Trim, common_prefix
from edged.testing.engine import FakeCache

SLOTS, CELLS = 5, 160


class PoolMachine(RuleBasedStateMachine):
    """Any order of acquire, extend, park, drop and forget keeps the pool's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = KvPool(slots=SLOTS, cells=CELLS)
        self.cache = FakeCache(CELLS)
        self.running: dict[int, tuple[list[int], int]] = {}
        self.tenant: dict[int, str] = {}

    def apply(self, ops) -> None:
        for op in ops:
            assert self.cache.apply(op)

    @rule(
        tenant=st.sampled_from("ab"),
        stem=st.integers(0, 2),
        stem_tokens=st.integers(0, 60),
        tail=st.lists(st.integers(0, 3), min_size=1, max_size=30),
        extra=st.integers(1, 40),
    )
    def acquire(self, tenant, stem, stem_tokens, tail, extra) -> None:
        tokens = [*([100 + stem] * stem_tokens), *tail]
        total = len(tokens) + extra
        before = {slot: self.pool.tokens(slot) for slot in range(SLOTS)}
        lease = self.pool.acquire(tokens, tenant=tenant, total_tokens=total)
        if lease is None:
            assert {slot: self.pool.tokens(slot) for slot in range(SLOTS)} == before
            needed = sum(total for _, total in self.running.values()) + total
            assert len(self.running) == SLOTS or needed > CELLS
            return
        assert lease.slot not in self.running
        self.apply(lease.ops)
        assert lease.cached_tokens < len(tokens)
        assert self.cache.tokens(lease.slot) == tuple(tokens[: lease.cached_tokens])
        sources = [op.source for op in lease.ops if isinstance(op, Copy)] or [lease.slot]
        assert not lease.cached_tokens or all(self.tenant[source] == tenant for source in sources)
        self.tenant[lease.slot] = tenant
        self.running[lease.slot] = (tokens, total)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 40))
    def extend(self, data, count) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        tokens, total = self.running[slot]
        held = len(self.pool.tokens(slot))
        new = (tokens[held:] or [7] * (total - held))[:count]
        new = new[: total - held]
        assert self.cache.write(slot, held, new), "cells promised to a running sequence were not there"
        self.pool.extend(slot, new)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(0, 8))
    def give_back(self, data, count) -> None:
        """Guessed tokens that did not come: their cells are free again, and still promised to the sequence."""
        slot = data.draw(st.sampled_from(sorted(self.running)))
        cells = self.pool._slots[slot].cells
        shared = max((at for at, cell in enumerate(cells, 1) if self.pool._owners[cell] > 1), default=0)
        length = max(shared, len(cells) - count)
        committed = self.pool._committed
        self.apply(self.pool.trim(slot, length))
        assert len(self.pool.tokens(slot)) == length
        assert self.pool._committed == committed

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def park(self, data) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[slot]
        self.pool.park(slot)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def drop(self, data) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[slot]
        self.apply(self.pool.drop(slot))

    @rule()
    def forget_parked(self) -> None:
        self.apply(self.pool.forget_parked())

    @invariant()
    def the_mirror_is_the_cache(self) -> None:
        for slot in range(SLOTS):
            assert self.pool.tokens(slot) == self.cache.tokens(slot)
        assert self.pool.used_cells == self.cache.used_cells

    @invariant()
    def no_more_is_promised_than_there_is(self) -> None:
        assert self.pool._committed <= CELLS
        assert self.pool.busy_slots == len(self.running)

    def teardown(self) -> None:
        for slot in list(self.running):
            self.pool.park(slot)
        self.apply(self.pool.forget_parked())
        assert self.pool.used_cells == self.cache.used_cells == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def filled(pool: KvPool, tokens, *, tenant="", total=None) -> int:
    """A running slot whose cells hold all of ``tokens``."""
    lease = pool.acquire(list(tokens), tenant=tenant, total_tokens=total or len(tokens))
    pool.extend(lease.slot, list(tokens[lease.cached_tokens :]))
    return lease.slot


def test_the_last_prompt_token_is_always_decoded() -> None:
    """A prompt that is whole in the cache still decodes its last token: without it there are no logits."""
    pool = KvPool(slots=2, cells=100)
    pool.park(filled(pool, range(20)))
    assert pool.cached_prefix(list(range(20)), "") == 19
    assert pool.acquire(list(range(20)), tenant="", total_tokens=30).cached_tokens == 19


def test_a_shared_prefix_is_counted_once() -> None:
    """Cells that several slots own are used once."""
    pool = KvPool(slots=3, cells=1000)
    filled(pool, range(100), total=150)
    lease = pool.acquire([*range(90), 500, 501], tenant="", total_tokens=120)
    assert lease.cached_tokens == 90
    assert lease.ops[-1] == Copy(0, lease.slot, 90)
    assert pool.used_cells == 100
    pool.extend(lease.slot, [500, 501])
    assert pool.used_cells == 102


def test_a_cell_that_somebody_shares_is_no_guess_to_give_back() -> None:
    """It would be promised again while it is still in use."""
    pool = KvPool(slots=2, cells=100)
    first = filled(pool, range(20), total=30)
    pool.acquire([*range(15), 500], tenant="", total_tokens=20)
    with pytest.raises(AssertionError):
        pool.trim(first, 14)
    assert len(pool.tokens(first)) == 20
    assert pool.trim(first, 15) == (Trim(first, 15),)


def test_a_running_prefix_is_shared_while_it_grows() -> None:
    """An active slot's computed tokens are a source like any other, and it keeps them."""
    pool = KvPool(slots=3, cells=1000)
    first = filled(pool, range(64), total=200)
    lease = pool.acquire(list(range(200)), tenant="", total_tokens=300)
    assert lease.cached_tokens == 64
    pool.drop(lease.slot)
    assert pool.tokens(first) == tuple(range(64))
    assert pool.used_cells == 64


def test_tenants_never_share() -> None:
    """The same prompt of another tenant is computed again."""
    pool = KvPool(slots=2, cells=100)
    pool.park(filled(pool, range(20), tenant="a"))
    assert pool.cached_prefix(list(range(20)), "b") == 0
    assert pool.acquire(list(range(20)), tenant="b", total_tokens=30).cached_tokens == 0


def test_finished_prefixes_go_oldest_first_and_only_as_many_as_needed() -> None:
    """Room is made by forgetting the least recently used prefix."""
    pool = KvPool(slots=4, cells=100)
    slots = [filled(pool, [i] * 30) for i in range(3)]
    for slot in (slots[1], slots[0], slots[2]):
        pool.park(slot)
    lease = pool.acquire([9] * 30, tenant="", total_tokens=35)
    assert Trim(slots[1], 0) in lease.ops
    assert pool.tokens(slots[0])
    assert pool.tokens(slots[2])


def test_using_a_prefix_keeps_it_young() -> None:
    """A prefix that was just shared is the last to be forgotten."""
    pool = KvPool(slots=4, cells=100)
    slots = [filled(pool, [i] * 30) for i in range(2)]
    for slot in slots:
        pool.park(slot)
    user = pool.acquire([*([0] * 10), 5], tenant="", total_tokens=11).slot
    assert user not in slots
    pool.drop(user)
    pool.acquire([9] * 40, tenant="", total_tokens=60)
    assert pool.tokens(slots[0])
    assert not pool.tokens(slots[1])


def test_a_short_tail_is_overwritten_in_place() -> None:
    """Chat history: the next turn continues in its own slot rather than in a copy."""
    pool = KvPool(slots=4, cells=1000)
    slot = filled(pool, range(100))
    pool.park(slot)
    turn = [*range(100 - ADOPT_TAIL_TOKENS), *range(500, 540)]
    lease = pool.acquire(turn, tenant="", total_tokens=200)
    assert (lease.slot, lease.cached_tokens) == (slot, 100 - ADOPT_TAIL_TOKENS)
    assert lease.ops == (Trim(slot, 100 - ADOPT_TAIL_TOKENS),)


def test_what_does_not_fit_waits_and_changes_nothing() -> None:
    """Cells promised to running sequences are not given away, and a refusal forgets no prefix."""
    pool = KvPool(slots=4, cells=100)
    pool.park(filled(pool, [1] * 20))
    filled(pool, [2] * 10, total=60)
    assert pool.acquire([3] * 30, tenant="", total_tokens=41) is None
    assert pool.used_cells == 30
    assert pool.acquire([3] * 30, tenant="", total_tokens=40) is not None


def test_a_model_that_cannot_share_starts_from_nothing() -> None:
    """Recurrent state after a prefix cannot be had from the state after more: nothing is reused."""
    pool = KvPool(slots=2, cells=100, shares=False)
    pool.park(filled(pool, range(20)))
    assert pool.cached_prefix(list(range(30)), "") == 0
    lease = pool.acquire(list(range(30)), tenant="", total_tokens=40)
    assert lease.cached_tokens == 0
    assert not any(isinstance(op, Copy) for op in lease.ops)


@pytest.mark.parametrize("seed", range(20))
def test_the_common_prefix_is_found_by_halves(seed: int) -> None:
    """Bisection finds what walking finds."""
    draw = random.Random(seed)
    for _ in range(200):
        a = [draw.randrange(2) for _ in range(draw.randrange(12))]
        b = a[: draw.randrange(len(a) + 1)] + [draw.randrange(2) for _ in range(draw.randrange(6))]
        walked = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == walked


@pytest.mark.parametrize(("one_tenant", "cached"), [(False, 0), (True, 3)])
def test_prefixes_cross_api_keys_only_where_the_config_says_one_tenant(*, one_tenant: bool, cached: int) -> None:
    """A18: what one key's prompt left behind is nobody else's, unless the operator declares one tenant."""
    pool = KvPool(slots=2, cells=64, one_tenant=one_tenant)
    lease = pool.acquire([1, 2, 3, 4], tenant="a", total_tokens=8)
    assert lease is not None
    pool.extend(lease.slot, [1, 2, 3, 4])
    pool.park(lease.slot)
    assert pool.cached_prefix([1, 2, 3, 4], "b") == cached
