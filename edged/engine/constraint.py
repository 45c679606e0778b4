"""The mask of each next token of an answer that keeps to a grammar.

``llguidance`` tells after each token which may follow. A mask is computed on a thread of its own while the model
computes the next distribution: llguidance works without the interpreter lock.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from edged.chat.toolformats import ToolFormat
from edged.engine.form import ConstraintFailed

_MASK_LIMIT_S = 1.0
_MOST_ERROR_CHARACTERS = 200


class Matched:
    """An answer constrained from here on."""

    def __init__(self, matcher: LLMatcher, vocab_tokens: int, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._vocab_tokens = vocab_tokens
        self._pool = pool
        self._bits = np.zeros((vocab_tokens + 31) // 32 * 4, dtype=np.uint8)
        self._pending: Future[NDArray[np.bool_]] | None = None

    def __repr__(self) -> str:
        return f"Matched(complete={self.complete}, error={self._matcher.get_error()!r})"

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped()

    def prepare(self) -> None:
        if self._pending is None and not self.complete:
            self._pending = self._pool.submit(self._fill)

    def mask(self) -> NDArray[np.bool_]:
        self.prepare()
        if self._pending is None:
            raise ConstraintFailed(self._why("it is complete, yet the answer goes on"))
        mask = self._computed()
        if self._matcher.is_error() or not mask.any():
            raise ConstraintFailed(self._why("no token may follow"))
        return mask

    def accept(self, token: int) -> None:
        if self._pending is not None:
            self._computed()
        if not self._matcher.consume_token(token):
            raise ConstraintFailed(self._why("the token does not follow"))

    def _computed(self) -> NDArray[np.bool_]:
        """The mask under way. Waiting for it holds up every neighbour in the batch, so it has a limit."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        try:
            return pending.result(timeout=_MASK_LIMIT_S)
        except TimeoutError:
            raise ConstraintFailed(f"the next token takes longer than {_MASK_LIMIT_S:g} s to decide on") from None

    def _fill(self) -> NDArray[np.bool_]:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        return np.unpackbits(self._bits, count=self._vocab_tokens, bitorder="little").view(np.bool_)

    def _why(self, otherwise: str) -> str:
        return (self._matcher.get_error() or otherwise)[:_MOST_ERROR_CHARACTERS]


class Opened:
    """An answer that is free until it opens a function call by itself; the call then keeps to its grammar.

    What opens a call is the format's markup, or for formats without any an answer that begins as a call does.
    """

    def __init__(
        self,
        form: ToolFormat,
        *,
        begin: Callable[[bytes], "Matched | None"],
        piece: Callable[[int], bytes],
        again: bool,
    ) -> None:
        self._form = form
        self._begin = begin
        self._piece = piece
        self._again = again
        self._tail = b""
        self._inner: Matched | None = None
        self._watching = True

    def __repr__(self) -> str:
        return f"Opened({self._form.name}, inner={self._inner!r})"

    @property
    def complete(self) -> bool:
        return self._inner is not None and self._inner.complete

    def prepare(self) -> None:
        if self._inner is not None:
            self._inner.prepare()

    def mask(self) -> NDArray[np.bool_] | None:
        return None if self._inner is None else self._inner.mask()

    def accept(self, token: int) -> None:
        if self._inner is None:
            self._watch(self._piece(token))
            return
        self._inner.accept(token)
        if self._inner.complete and self._again:
            self._inner, self._tail = None, b""

    def _watch(self, piece: bytes) -> None:
        if not self._watching:
            return
        self._tail += piece
        opening = self._form.opening.encode()
        if not opening:
            self._watch_beginning()
            return
        at = self._tail.find(opening)
        if at >= 0:
            self._tail = self._tail[at + len(opening) :]
            self._inner = self._begin(self._tail)
        self._tail = self._tail[max(0, len(self._tail) - len(opening) + 1) :]

    def _watch_beginning(self) -> None:
        head, begun = self._form.head.rstrip().encode(), self._tail.lstrip()
        if begun.startswith(head[: head.index(b":")]):
            self._inner = self._begin(begun)
            self._watching = False
        elif not head.startswith(begun):
            self._watching = False
