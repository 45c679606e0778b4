"""A runner without a model, whose KV cache is written the obvious way.

``FakeRunner`` answers by what is really in its cache, so that an engine that loses track of it says something else.
"""

import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edged.engine.kv import Copy, KvOp, Trim
from edged.engine.protocol import Params
from edged.engine.scheduler import Row

END = 256
"""The end-of-answer token of the fake vocabulary: 256 bytes and this."""

_STATE_VALUES = 8
_VOCAB_TOKENS = END + 1
_ABORTED = 2
_NO_SPACE = 1
_POLL_S = 0.001

Answer = Callable[[Sequence[int]], int]
"""The next token after this context."""


def babble(context: Sequence[int]) -> int:
    """A letter that depends on every token before it."""
    return ord("a") + hashlib.blake2b(repr(tuple(context)).encode(), digest_size=1).digest()[0] % 26


def replies(text: bytes, *, after: int = 0) -> Answer:
    """Says ``text``, then ends, whatever the prompt; the prompt's last token must be the only ``after``."""

    def answer(context: Sequence[int]) -> int:
        said = len(context) - 1 - max(i for i, token in enumerate(context) if token == after)
        return text[said] if said < len(text) else END

    return answer


def state_of(context: Sequence[int]) -> NDArray[np.float32]:
    """A hidden state that depends on every token before it."""
    digest = hashlib.blake2b(repr(tuple(context)).encode(), digest_size=4 * _STATE_VALUES).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.float32) / np.float32(2**32)


class FakeVocabulary:
    """Each byte is a token."""

    size_tokens = _VOCAB_TOKENS

    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int) -> bytes:
        return b"" if token == END else bytes([token])


class FakeCache:
    """llama.cpp's unified KV cache, naively: cells with a position, a token and the slots that own it."""

    def __init__(self, cells: int, *, refuses_partial: bool = False) -> None:
        self._size = cells
        self._cells: list[tuple[int, int, set[int]]] = []
        self.refuses_partial = refuses_partial

    @property
    def used_cells(self) -> int:
        return len(self._cells)

    def tokens(self, slot: int) -> tuple[int, ...]:
        """The slot's tokens by position; fails where a position is missing or doubled."""
        owned = sorted((position, token) for position, token, owners in self._cells if slot in owners)
        assert [position for position, _ in owned] == list(range(len(owned))), f"slot {slot} has holes: {owned}"
        return tuple(token for _, token in owned)

    def apply(self, op: KvOp) -> bool:
        match op:
            case Trim(slot, length):
                if self.refuses_partial and 0 < length < len(self.tokens(slot)):
                    return False
                for position, _, owners in self._cells:
                    if position >= length:
                        owners.discard(slot)
            case Copy(source, target, length):
                for position, _, owners in self._cells:
                    if position < length and source in owners:
                        owners.add(target)
        self._cells = [cell for cell in self._cells if cell[2]]
        return True

    def write(self, slot: int, start: int, tokens: Iterable[int]) -> bool:
        """Put tokens at the next positions; False, and nothing written, where the cells do not suffice."""
        new = [(start + i, token, {slot}) for i, token in enumerate(tokens)]
        if len(self._cells) + len(new) > self._size:
            return False
        self._cells += new
        return True


class _FakeSampler:
    def __init__(self, params: Params) -> None:
        self._random = None if params.temperature == 0 else random.Random(params.seed)  # noqa: S311 - a double
        self.closed = False

    def sample(self, context: object, row: int) -> int:  # noqa: ARG002 - the seam's shape
        return 0 if self._random is None else self._random.randrange(5)

    def accept(self, token: int) -> None:  # noqa: ARG002 - the seam's shape
        if self._random is not None:
            self._random.randrange(5)

    def close(self) -> None:
        assert not self.closed, "a sampler was freed twice"
        self.closed = True


class FakeRunner:
    """Stands where ``engine.runner.Runner`` does. ``faults`` are the statuses of the next decodes, 0 = compute.

    ``steps`` receives the rows of each decode as it begins. While ``hold`` is in force a decode waits, and ends only by
    ``resume`` or by the abort flag.
    """

    def __init__(
        self, *, answer: Answer = babble, cells: int = 4096, batch_tokens: int = 64, step_rows: int = 16
    ) -> None:
        self.vocabulary = FakeVocabulary()
        self.batch_tokens = batch_tokens
        self.step_rows = step_rows
        self.cache = FakeCache(cells)
        self.faults: list[int] = []
        self.steps: queue.SimpleQueue[tuple[Row, ...]] = queue.SimpleQueue()
        self.samplers: list[_FakeSampler] = []
        self._answer = answer
        self._gate = threading.Event()
        self._gate.set()
        self._abort = threading.Event()
        self._contexts: list[list[tuple[int, ...]]] = []  # of each row: what came before each of its logits

    @property
    def open_samplers(self) -> int:
        return sum(not sampler.closed for sampler in self.samplers)

    def hold(self) -> None:
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    def decode(self, rows: Sequence[Row]) -> int:
        assert 0 < sum(len(row.tokens) for row in rows) <= self.batch_tokens, "a batch is over its limit"
        gives_states = any(row.wants_state for row in rows)
        outputs = sum(len(row.tokens) if gives_states else row.outputs for row in rows)
        assert outputs <= self.step_rows, "no room for so many outputs"
        self.steps.put(tuple(rows))
        while not self._gate.wait(_POLL_S):
            if self._abort.is_set():
                return self._fail(rows, _ABORTED)
        if self._abort.is_set():
            return self._fail(rows, _ABORTED)
        if self.faults and (status := self.faults.pop(0)):
            return self._fail(rows, status)
        return self._compute(rows)

    def _fail(self, rows: Sequence[Row], status: int) -> int:
        """A step that fails half way leaves cells behind, as llama.cpp may."""
        if status != _NO_SPACE:
            for row in rows:
                assert row.sequence.slot is not None
                self.cache.write(row.sequence.slot, row.start, row.tokens[: len(row.tokens) // 2 + 1])
        return status

    def _compute(self, rows: Sequence[Row]) -> int:
        self._contexts = []
        for row in rows:
            slot = row.sequence.slot
            assert slot is not None
            assert row.start == len(self.cache.tokens(slot)), f"{row} does not follow what is in the cache"
            if not self.cache.write(slot, row.start, row.tokens):
                return _NO_SPACE
            context = self.cache.tokens(slot)
            self._contexts.append([context[: len(context) - left] for left in range(row.drafted, -1, -1)])
        return 0

    def logits(self, row: int, guesses: int = 0) -> NDArray[np.float32]:
        logits = np.zeros(_VOCAB_TOKENS, dtype=np.float32)
        logits[self._answer(self._contexts[row][guesses])] = 10
        return logits

    def state(self, row: int) -> NDArray[np.float32]:
        return state_of(self._contexts[row][0])

    def sampler(self, params: Params) -> _FakeSampler:
        self.samplers.append(_FakeSampler(params))
        return self.samplers[-1]

    def sample(self, sampler: _FakeSampler, row: int, guesses: int = 0) -> int:
        token = self._answer(self._contexts[row][guesses])
        drawn = sampler.sample(None, row)
        return token if token == END else (token + drawn) % END

    def apply(self, op: KvOp) -> bool:
        return self.cache.apply(op)

    def set_threads(self, count: int) -> None:
        """Nothing computes here."""

    @property
    def is_aborting(self) -> bool:
        return self._abort.is_set()

    def set_abort(self, *, on: bool) -> None:
        if on:
            self._abort.set()
        else:
            self._abort.clear()
