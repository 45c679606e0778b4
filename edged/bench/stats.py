"""Figures from what clients saw. Pure: no clock, no I/O."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text that arrived ``at_s`` after its request was sent."""

    at_s: float
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer as its client saw it; every time counts from when the request was sent.

    ``completion_tokens`` is the server's own count, or the number of pieces where it sent none (``counted``).
    """

    pieces: tuple[Piece, ...] = ()
    total_s: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int | None = None
    counted: bool = False
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.pieces[0].at_s if self.pieces else None

    @property
    def gaps_s(self) -> list[float]:
        """Pauses between pieces of text."""
        return [later.at_s - earlier.at_s for earlier, later in pairwise(self.pieces)]

    @property
    def decode_tps(self) -> float | None:
        """Tokens per second after the first piece; None where there is only one.

        A server may hold tokens back and send several at first: those took no time that was seen here, so the first
        piece counts for its share of the text.
        """
        duration_s = self.pieces[-1].at_s - self.pieces[0].at_s if self.pieces else 0.0
        if duration_s <= 0:
            return None
        return (self.completion_tokens - self._first_tokens) / duration_s

    @property
    def _first_tokens(self) -> int:
        if len(self.pieces) >= self.completion_tokens:
            return 1
        characters = sum(piece.characters for piece in self.pieces)
        return max(1, round(self.completion_tokens * self.pieces[0].characters / characters))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One round: all answers to requests that ran together. None where there was nothing to measure.

    ``decode_tps`` is the median stream's, ``total_tps`` all completion tokens over the round's wall time, prefill
    included.
    """

    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p50_s: float | None
    itl_p95_s: float | None
    itl_max_s: float | None
    decode_tps: float | None
    total_tps: float | None
    completion_tokens: int
    prompt_tokens: int
    errors: int


METRICS = ("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s", "itl_max_s", "decode_tps", "total_tps")


@dataclass(frozen=True, slots=True)
class Ratio:
    """Per-round ratios of one metric to the first target's: their median and their range."""

    median: float
    low: float
    high: float


def percentile(values: Iterable[float], q: float) -> float | None:
    """The smallest value that at least ``q`` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * q / 100) - 1)]


def summarise(answers: Sequence[Answer], wall_s: float) -> Figures:
    """Figures of one round that took ``wall_s``. Failed answers only count as errors."""
    good = [answer for answer in answers if answer.error is None]
    ttfts = [answer.ttft_s for answer in good if answer.ttft_s is not None]
    gaps = [gap for answer in good for gap in answer.gaps_s]
    rates = [answer.decode_tps for answer in good if answer.decode_tps is not None]
    tokens = sum(answer.completion_tokens for answer in good)
    return Figures(
        ttft_p50_s=percentile(ttfts, 50),
        ttft_p95_s=percentile(ttfts, 95),
        itl_p50_s=percentile(gaps, 50),
        itl_p95_s=percentile(gaps, 95),
        itl_max_s=max(gaps, default=None),
        decode_tps=statistics.median(rates) if rates else None,
        total_tps=tokens / wall_s if tokens else None,
        completion_tokens=tokens,
        prompt_tokens=sum(answer.prompt_tokens or 0 for answer in good),
        errors=len(answers) - len(good),
    )


def medians(rounds: Sequence[Figures]) -> dict[str, float | None]:
    """The median round of each figure; errors are added up."""
    columns = {field.name: [getattr(figures, field.name) for figures in rounds] for field in fields(Figures)}
    result = {name: _median(values) for name, values in columns.items()}
    return result | {"errors": sum(columns["errors"])}


def ratios(rounds: Sequence[Figures], base: Sequence[Figures]) -> dict[str, Ratio | None]:
    """How each metric compares with the first target's in the same round, so that drift of the box cancels out."""
    return {name: _ratio(name, rounds, base) for name in METRICS}


def _ratio(name: str, rounds: Sequence[Figures], base: Sequence[Figures]) -> Ratio | None:
    pairs = [(getattr(ours, name), getattr(theirs, name)) for ours, theirs in zip(rounds, base, strict=True)]
    values = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    return Ratio(statistics.median(values), min(values), max(values)) if values else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
