"""Which tokens the cells of each slot hold: a mirror of llama.cpp's unified KV cache.

Pure bookkeeping. Every method that needs the real cache changed returns the operations to apply, in order; the caller
applies them. A cell shared by several slots is counted once. Used + free cells are the pool at every moment.
"""

from collections import Counter
from dataclasses import dataclass, field

ADOPT_TAIL_TOKENS = 16
"""A finished slot whose tail beyond the shared prefix is this short is taken over in place rather than copied."""


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove the slot's cells from position ``length`` on."""

    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Let ``target`` own the first ``length`` cells of ``source`` too; no cell is copied."""

    source: int
    target: int
    length: int


KvOp = Trim | Copy


@dataclass(frozen=True, slots=True)
class Lease:
    """A slot given to a sequence, with ``cached_tokens`` of its prompt already computed."""

    slot: int
    cached_tokens: int
    ops: tuple[KvOp, ...]


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    tenant: str = ""
    reserved_tokens: int = 0
    busy: bool = False
    used_at: int = 0


class KvPool:
    """Slots and cells of one context. ``cells`` is the size of the unified cache in tokens.

    ``shares`` is off for models whose state after a prefix cannot be taken out of the state after more (recurrent).
    ``one_tenant`` lets prefixes cross API keys.
    """

    def __init__(self, *, slots: int, cells: int, shares: bool = True, one_tenant: bool = False) -> None:
        self._shares = shares
        self._one_tenant = one_tenant
        self._slots = [_Slot() for _ in range(slots)]
        self._cells = cells
        self._owners: Counter[int] = Counter()
        self._next_cell = 0
        self._clock = 0

    def __repr__(self) -> str:
        busy = sum(slot.busy for slot in self._slots)
        return f"KvPool(busy={busy}/{len(self._slots)}, used_cells={self.used_cells}/{self._cells})"

    @property
    def cells(self) -> int:
        return self._cells

    @property
    def used_cells(self) -> int:
        return len(self._owners)

    @property
    def busy_slots(self) -> int:
        return sum(slot.busy for slot in self._slots)

    def tokens(self, slot: int) -> tuple[int, ...]:
        return tuple(self._slots[slot].tokens)

    def cached_prefix(self, tokens: list[int], tenant: str) -> int:
        """How many leading tokens need not be computed again; always less than the whole prompt."""
        return self._best(tokens, tenant)[1]

    def acquire(self, tokens: list[int], *, tenant: str, total_tokens: int) -> Lease | None:
        """A slot for a sequence that may grow to ``total_tokens``, or None while it does not fit.

        Finished prefixes are forgotten, least recently used first, until the sequence's cells are certain to exist.
        """
        source, cached = self._best(tokens, tenant)
        if all(slot.busy for slot in self._slots) or not self._fits(source, cached, total_tokens):
            return None
        target = self._target(source, cached)
        ops = self._settle(source, target, cached)
        ops += self._make_room(total_tokens - cached, spare=target)
        slot = self._slots[target]
        slot.busy, slot.tenant, slot.reserved_tokens = True, tenant, total_tokens
        self._touch(target)
        return Lease(target, cached, tuple(ops))

    def extend(self, slot: int, tokens: list[int]) -> None:
        """Record that a decode put these tokens into the slot's next cells."""
        state = self._slots[slot]
        cells = range(self._next_cell, self._next_cell + len(tokens))
        self._next_cell += len(tokens)
        state.tokens += tokens
        state.cells += cells
        self._owners.update(cells)

    def park(self, slot: int) -> None:
        """Keep a finished sequence's cells for whoever shares its prefix."""
        state = self._slots[slot]
        state.busy, state.reserved_tokens = False, 0
        self._touch(slot)

    def park_once(self, slot: int, length: int) -> tuple[KvOp, ...]:
        """Keep the first ``length`` tokens of a finished sequence, or nothing where another slot holds them too."""
        if not self._shares:
            self.park(slot)
            return ()
        if self._has_twin(slot, length):
            return self.drop(slot)
        self.park(slot)
        return self._trim(slot, length)

    def trim(self, slot: int, length: int) -> tuple[KvOp, ...]:
        """Give back the slot's cells from position ``length`` on: guessed tokens that did not come.

        Nobody shares them yet, else the promise they fall back into would be one cell too many for each.
        """
        assert all(self._owners[cell] == 1 for cell in self._slots[slot].cells[length:])
        return self._trim(slot, length)

    def rewind(self, slot: int) -> KvOp:
        """Remove from the real cache whatever an aborted decode may have left behind the slot's known cells."""
        return Trim(slot, len(self._slots[slot].tokens))

    def drop(self, slot: int) -> tuple[KvOp, ...]:
        """Forget the slot and its cells together (after a failed decode or a failed removal).

        The real slot is cleared even if it is not known to hold anything: a failed decode may have left cells behind.
        """
        state = self._slots[slot]
        state.busy, state.reserved_tokens = False, 0
        self._trim(slot, 0)
        return (Trim(slot, 0),)

    def forget_parked(self) -> tuple[KvOp, ...]:
        """Give back every cell that no running sequence needs."""
        ops: list[KvOp] = []
        for slot, state in enumerate(self._slots):
            if not state.busy:
                ops += self._trim(slot, 0)
        return tuple(ops)

    # -- choosing --

    def _best(self, tokens: list[int], tenant: str) -> tuple[int | None, int]:
        best: tuple[int | None, int] = (None, 0)
        if not self._shares:
            return best
        for slot, state in enumerate(self._slots):
            if not state.tokens or not (self._one_tenant or state.tenant == tenant):
                continue
            length = min(common_prefix(state.tokens, tokens), len(tokens) - 1)
            if length > best[1] or (length == best[1] > 0 and not state.busy):
                best = (slot, length)
        return best

    def _target(self, source: int | None, cached: int) -> int:
        """The slot to use: the source itself where little is lost, else an empty one, else the oldest finished one."""
        if source is not None and self._is_spare(self._slots[source], cached):
            return source
        idle = [slot for slot, state in enumerate(self._slots) if not state.busy]
        others = [slot for slot in idle if slot != source] or idle
        return min(others, key=lambda slot: (bool(self._slots[slot].tokens), self._slots[slot].used_at))

    def _is_spare(self, slot: _Slot, cached: int) -> bool:
        return not slot.busy and len(slot.tokens) - cached <= ADOPT_TAIL_TOKENS

    def _has_twin(self, slot: int, length: int) -> bool:
        """Whether another slot shares the cells of all but the last of so many tokens, and has one more."""
        own = self._slots[slot].cells
        others = (other.cells for other in self._slots if other.cells is not own)
        return length > 1 and any(len(cells) >= length and cells[length - 2] == own[length - 2] for cells in others)

    def _settle(self, source: int | None, target: int, cached: int) -> list[KvOp]:
        """Bring the target slot to hold exactly the shared prefix."""
        if source is None or source == target:
            return list(self._trim(target, cached))
        self._touch(source)
        ops: list[KvOp] = [*self._trim(target, 0), Copy(source, target, cached)]
        origin, state = self._slots[source], self._slots[target]
        state.tokens, state.cells = origin.tokens[:cached], origin.cells[:cached]
        self._owners.update(state.cells)
        return ops

    def _make_room(self, needed_cells: int, *, spare: int) -> list[KvOp]:
        ops: list[KvOp] = []
        parked = [slot for slot, state in enumerate(self._slots) if not state.busy and state.tokens and slot != spare]
        for slot in sorted(parked, key=lambda slot: self._slots[slot].used_at):
            if self._committed + needed_cells <= self._cells:
                break
            ops += self._trim(slot, 0)
        return ops

    @property
    def _committed(self) -> int:
        """Cells in use plus those promised to running sequences."""
        return self.used_cells + self._promised

    @property
    def _promised(self) -> int:
        return sum(slot.reserved_tokens - len(slot.tokens) for slot in self._slots if slot.busy)

    def _fits(self, source: int | None, cached: int, total_tokens: int) -> bool:
        """Whether forgetting finished prefixes can make room; changes nothing."""
        pinned = {cell for slot in self._slots if slot.busy for cell in slot.cells}
        if source is not None:
            pinned.update(self._slots[source].cells[:cached])
        return len(pinned) + self._promised + total_tokens - cached <= self._cells

    def _trim(self, slot: int, length: int) -> tuple[KvOp, ...]:
        state = self._slots[slot]
        if len(state.tokens) <= length:
            return ()
        for cell in state.cells[length:]:
            self._owners[cell] -= 1
            if not self._owners[cell]:
                del self._owners[cell]
        del state.tokens[length:], state.cells[length:]
        return (Trim(slot, length),)

    def _touch(self, slot: int) -> None:
        self._clock += 1
        self._slots[slot].used_at = self._clock


def common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix, by halving (list comparison runs in C)."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
