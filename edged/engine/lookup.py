"""How a sequence's own tokens went on when they last stood as they stand now: prompt lookup, kept up token by token.

Every prediction is held against the token that really came, whether or not it was ever computed as a draft, so what is
known of a sequence's odds costs no step and is never out of date.
"""

from array import array
from bisect import bisect_right

SHORTEST_MATCH = 2
LONGEST_MATCH = 32
MOST_INDEXED_TOKENS = 16_384
"""Older tokens are forgotten: the index of one sequence stays within about 3 MB."""

_MOST_CANDIDATES = 8
_CLASSES = (SHORTEST_MATCH, 3, 4, 6, 10, 16)
_AT_FIRST = (0.3, 0.45, 0.55, 0.7, 0.8, 0.9)
_PRIOR_WEIGHT = 3.0
_LEAST_CHANCE = 0.03
_NONE = -1


class Odds:
    """How often a foreseen token came, by the length of the match behind it; recent tokens count more.

    A sequence leans on what its model's sequences showed before it, and those on a first guess.
    """

    def __init__(self, *, prior: "Odds | None" = None) -> None:
        self._prior = prior
        self._keep = 0.99 if prior is None else 0.9
        self._hits = [0.0] * len(_CLASSES)
        self._tries = [0.0] * len(_CLASSES)

    def __repr__(self) -> str:
        return f"Odds({', '.join(f'{length}: {self.chance(length):.2f}' for length in _CLASSES)})"

    def chance(self, length: int) -> float:
        """The probability that the token foreseen from a match of ``length`` tokens is the next one."""
        at = bisect_right(_CLASSES, length) - 1
        before = _AT_FIRST[at] if self._prior is None else self._prior.chance(length)
        return (self._hits[at] + _PRIOR_WEIGHT * before) / (self._tries[at] + _PRIOR_WEIGHT)

    def note(self, length: int, *, hit: bool) -> None:
        at = bisect_right(_CLASSES, length) - 1
        self._hits[at] = self._keep * self._hits[at] + hit
        self._tries[at] = self._keep * self._tries[at] + 1
        if self._prior is not None:
            self._prior.note(length, hit=hit)


class Lookup:
    """Follows one sequence's growing list of tokens. A token costs a few dictionary look-ups, whatever the length."""

    def __init__(self, tokens: list[int], odds: Odds) -> None:
        self._tokens = tokens
        self._odds = odds
        self._start = max(0, len(tokens) - MOST_INDEXED_TOKENS)
        self._earlier = array("q")  # per position from _start: where the same two tokens stood before it
        self._latest: dict[tuple[int, int], int] = {}
        self._at = _NONE  # the position whose token is expected next
        self._length = 0
        self._index_up_to(len(tokens))
        self._find()

    def __repr__(self) -> str:
        return f"Lookup(tokens={len(self._tokens)}, pairs={len(self._latest)}, match={self._length})"

    @property
    def length(self) -> int:
        """How many tokens before the next one match; 0: nothing is foreseen."""
        return self._length

    @property
    def indexed_pairs(self) -> int:
        return len(self._latest)

    def catch_up(self) -> None:
        """Take in the tokens added since, and hold each against what was foreseen."""
        for position in range(self._start + len(self._earlier), len(self._tokens)):
            self._index_up_to(position + 1)
            if self._length:
                hit = self._tokens[self._at] == self._tokens[position]
                self._odds.note(self._length, hit=hit)
                if hit:
                    self._at += 1
                    self._length = min(self._length + 1, LONGEST_MATCH)
                    continue
            self._find(position)

    def chances(self, most: int) -> list[float]:
        """For each of the next tokens how likely it and all before it come as foreseen, as long as that is likely."""
        chances, together = [], 1.0
        for ahead in range(most if self._length else 0):
            together *= self._odds.chance(min(self._length + ahead, LONGEST_MATCH))
            if together < _LEAST_CHANCE:
                break
            chances.append(together)
        return chances

    def draft(self, count: int) -> tuple[int, ...]:
        """The next tokens as foreseen; beyond the last known one the repetition goes on with itself."""
        known, foreseen = len(self._tokens), list[int]()
        for position in range(self._at, self._at + count):
            foreseen.append(self._tokens[position] if position < known else foreseen[position - known])
        return tuple(foreseen)

    def _index_up_to(self, end: int) -> None:
        tokens, latest, earlier, start = self._tokens, self._latest, self._earlier, self._start
        for position in range(start + len(earlier), end):
            if position == start:
                earlier.append(_NONE)
                continue
            pair = (tokens[position - 1], tokens[position])
            earlier.append(latest.get(pair, _NONE))
            latest[pair] = position
            old = position - MOST_INDEXED_TOKENS
            if old > start and latest.get(forgotten := (tokens[old - 1], tokens[old])) == old:
                del latest[forgotten]

    def _find(self, last: int | None = None) -> None:
        """The longest match among the latest places where the last two tokens stood before, the latest of equals."""
        last = len(self._tokens) - 1 if last is None else last
        self._at, self._length = _NONE, 0
        candidate = self._earlier[last - self._start] if last >= self._start else _NONE
        for _ in range(_MOST_CANDIDATES):
            if candidate == _NONE or candidate <= last - MOST_INDEXED_TOKENS:
                return
            length = self._common(candidate, last)
            if length > self._length:
                self._at, self._length = candidate + 1, length
            candidate = self._earlier[candidate - self._start]

    def _common(self, a: int, b: int) -> int:
        """How many tokens ending at two positions are the same, counted up to the longest match."""
        tokens, most = self._tokens, min(LONGEST_MATCH, a - self._start + 1)
        length = SHORTEST_MATCH
        while length < most and tokens[a - length] == tokens[b - length]:
            length += 1
        return length
