"""The engine's own speed: medians over recent steps, so that one slow step does not move a decision."""

from collections import deque
from dataclasses import dataclass
from statistics import median

_SAMPLES = 15
_MIN_PREFILL_TOKENS = 16
_WINDOW_STEPS = 9
_ROW_COST = 0.5
"""A further row against the first one, before any was measured: what small models cost on a CPU."""

_OUTLIER = 2.5
_SLOWEST_LEARNING = 0.1


class Rates:
    """Tokens per second of prefill, and of decode for one stream. None until measured."""

    def __init__(self) -> None:
        self._prefill: deque[float] = deque(maxlen=_SAMPLES)
        self._decode: deque[float] = deque(maxlen=_SAMPLES)

    def observe(self, *, prefill_tokens: int, decode_rows: int, elapsed_s: float, accepted_tokens: int = 0) -> None:
        """Record one step. A mixed step is charged to its prompt tokens: a prediction errs to the slow side.

        ``decode_rows`` are the streams that got a token, ``accepted_tokens`` what they got beyond that.
        """
        if elapsed_s <= 0:
            return
        if prefill_tokens >= _MIN_PREFILL_TOKENS:
            self._prefill.append(prefill_tokens / elapsed_s)
        elif decode_rows and not prefill_tokens:
            self._decode.append((1 + accepted_tokens / decode_rows) / elapsed_s)

    @property
    def prefill_tps(self) -> float | None:
        return median(self._prefill) if self._prefill else None

    @property
    def decode_tps(self) -> float | None:
        return median(self._decode) if self._decode else None


@dataclass(frozen=True, slots=True)
class _Step:
    rows: int
    elapsed_s: float
    plain: bool


class StepCosts:
    """What a decode step of so many rows costs, in steps of one row.

    Kept apart from how fast the box is at this moment: steps with drafts are compared with plain ones where one kind
    follows the other, so that a neighbour that comes or goes changes the pace and hardly the ratios.
    """

    def __init__(self) -> None:
        self._ratios: dict[int, float] = {1: 1.0}
        self._seen: dict[int, int] = {}
        self._recent: deque[_Step] = deque(maxlen=_WINDOW_STEPS)

    def __repr__(self) -> str:
        return f"StepCosts({', '.join(f'{rows}: {self._ratios[rows]:.2f}' for rows in sorted(self._ratios))})"

    def ratio(self, rows: int) -> float:
        """As measured, else on the line between or beyond the nearest numbers of rows that were."""
        if known := self._ratios.get(rows):
            return known
        below = max(known for known in self._ratios if known < rows)
        above = min((known for known in self._ratios if known > rows), default=None)
        if above is not None:
            slope = (self._ratios[above] - self._ratios[below]) / (above - below)
        else:
            slope = _ROW_COST if below == 1 else (self._ratios[below] - 1) / (below - 1)
        return self._ratios[below] + slope * (rows - below)

    def observe(self, rows: int, elapsed_s: float, *, plain: bool) -> None:
        """Record one step without a prompt; ``plain`` without drafts either."""
        if elapsed_s <= 0:
            return
        step, before = _Step(rows, elapsed_s, plain), self._recent[-1] if self._recent else None
        self._recent.append(step)
        if before and before.plain != plain:
            self._compare(before if plain else step)

    def forget_pace(self) -> None:
        """The number of threads changed: what came before says nothing of the next step."""
        self._recent.clear()

    def _compare(self, drafted: _Step) -> None:
        """Measure a step with drafts, and those like it, against the plain ones near it.

        So many rows never cost more than so many steps: what took longer was held up.
        """
        rows, expected = drafted.rows, self.ratio(drafted.rows)
        took_s = median(step.elapsed_s for step in self._recent if not step.plain and step.rows == rows)
        measured = took_s / median(step.elapsed_s / self.ratio(step.rows) for step in self._recent if step.plain)
        measured = min(rows, expected * _OUTLIER, max(expected / _OUTLIER, measured))
        count = self._seen[rows] = self._seen.get(rows, 0) + 1
        self._ratios[rows] = expected + (measured - expected) * max(_SLOWEST_LEARNING, 1 / (count + 1))
