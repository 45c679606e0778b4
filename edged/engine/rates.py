"""The engine's own speed: medians over recent steps, so that one slow step does not move a decision."""

from collections import deque
from statistics import median

_SAMPLES = 15
_MIN_PREFILL_TOKENS = 16


class Rates:
    """Tokens per second of prefill, and of decode for one stream. None until measured."""

    def __init__(self) -> None:
        self._prefill: deque[float] = deque(maxlen=_SAMPLES)
        self._decode: deque[float] = deque(maxlen=_SAMPLES)

    def observe(self, *, prefill_tokens: int, decode_rows: int, elapsed_s: float) -> None:
        """Record one step. A mixed step is charged to its prompt tokens: a prediction errs to the slow side."""
        if elapsed_s <= 0:
            return
        if prefill_tokens >= _MIN_PREFILL_TOKENS:
            self._prefill.append(prefill_tokens / elapsed_s)
        elif decode_rows and not prefill_tokens:
            self._decode.append(1 / elapsed_s)

    @property
    def prefill_tps(self) -> float | None:
        return median(self._prefill) if self._prefill else None

    @property
    def decode_tps(self) -> float | None:
        return median(self._decode) if self._decode else None
