"""Drafts where they pay: who gets how many guessed tokens in the next step. Pure, owned by the decode thread.

A drafted token is one more row of the step. It pays while the tokens a step is expected to yield grow faster than its
time: that depends on how likely the guess is (``lookup.Odds``), on what a row costs on this box (``rates.StepCosts``)
and on how many rows the step has anyway. The more sequences decode, the less a guess is worth beside them.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

from edged.engine.lookup import Lookup, Odds
from edged.engine.rates import StepCosts
from edged.engine.sequence import Sequence

MOST_DRAFTED_TOKENS = 7
"""Of one sequence in one step."""

_LEAST_GAIN = 1.05
_PROBE_EVERY_STEPS = 20
_PLAIN_EVERY_STEPS = 12
_FIRST_PLAIN_STEP = 3
_HOPE = 0.4


class Drafter:
    """Proposes drafts and learns what they cost. ``most_rows`` limits the rows of a step, drafts included."""

    def __init__(self, *, most_rows: int) -> None:
        self._most_rows = most_rows
        self._costs = StepCosts()
        self._odds = Odds()
        self._plain_steps = 0
        self._drafted_steps = 0

    def __repr__(self) -> str:
        return f"Drafter({self._odds!r}, {self._costs!r})"

    def propose(self, sequences: Items[Sequence]) -> dict[Sequence, tuple[int, ...]]:
        """Guessed next tokens of those sequences for which they pay, in a step with one row of each beside them."""
        if not sequences:
            return {}
        lookups = [self._follow(sequence) for sequence in sequences]
        spare_rows = max(0, self._most_rows - len(sequences))
        chances = [
            lookup.chances(min(spare_rows, MOST_DRAFTED_TOKENS, sequence.room_tokens - 1))
            for lookup, sequence in zip(lookups, sequences, strict=True)
        ]
        counts = self._counts(chances, spare_rows)
        drafted = zip(sequences, lookups, counts, strict=True)
        return {sequence: lookup.draft(count) for sequence, lookup, count in drafted if count}

    def observe(self, rows: int, elapsed_s: float, *, plain: bool) -> None:
        """Record a step without a prompt, from its beginning to its last chosen token."""
        self._costs.observe(rows, elapsed_s, plain=plain)

    def forget_pace(self) -> None:
        self._costs.forget_pace()

    def _follow(self, sequence: Sequence) -> Lookup:
        if sequence.lookup is None:
            sequence.lookup = Lookup(sequence.tokens, Odds(prior=self._odds))
        sequence.lookup.catch_up()
        return sequence.lookup

    def _counts(self, chances: list[list[float]], spare_rows: int) -> list[int]:
        """What pays. Now and then the other way, else no mistake about the costs would ever show.

        That is a plain step to compare with, or what would pay if rows were cheaper than they seem.
        """
        counts = share_out(chances, spare_rows, self._costs.ratio)
        if any(counts):
            self._drafted_steps += 1
            if self._drafted_steps % _PLAIN_EVERY_STEPS == _FIRST_PLAIN_STEP:
                return [0] * len(counts)
        elif self._plain_steps >= _PROBE_EVERY_STEPS:
            counts = share_out(chances, spare_rows, self._hoped(len(chances)))
        self._plain_steps = 0 if any(counts) else self._plain_steps + 1
        return counts

    def _hoped(self, plain_rows: int) -> Callable[[int], float]:
        plain = self._costs.ratio(plain_rows)
        return lambda rows: plain + _HOPE * (self._costs.ratio(rows) - plain)


def share_out(chances: list[list[float]], spare_rows: int, cost: Callable[[int], float]) -> list[int]:
    """How many tokens to draft for each sequence, so that tokens per time are most; none unless they clearly gain.

    ``chances`` holds for each sequence the falling probabilities that its first, second, ... guess is of use; ``cost``
    is the time of a step of so many rows.
    """
    plain_rows = len(chances)
    offers = sorted(((chance, who) for who, its in enumerate(chances) for chance in its), key=lambda offer: -offer[0])
    counts = [0] * plain_rows
    if not offers:
        return counts
    tokens, taken, best = float(plain_rows), 0, _LEAST_GAIN * plain_rows / cost(plain_rows)
    for count, (chance, _) in enumerate(offers[:spare_rows], start=1):
        tokens += chance
        if (rate := tokens / cost(plain_rows + count)) > best:
            taken, best = count, rate
    for _, who in offers[:taken]:
        counts[who] += 1
    return counts
