"""Places in a text: known words, and what to do where places overlap."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Place = tuple[int, int]
Finder = Callable[[str], Iterator[Place]]
"""The places of something in a text, as (start, end)."""


def whole_words(compile_: Callable[[str], Any], words: Sequence[str], *, ignore_case: bool = False) -> Finder:
    """Finds each of ``words``, the longest where several fit; any white space stands for theirs."""
    import re2

    if not words:
        return lambda _: iter(())
    longest_first = sorted({" ".join(word.split()) for word in words}, key=len, reverse=True)
    spellings = "|".join(r"\s+".join(map(re2.escape, word.split())) for word in longest_first)
    compiled = compile_(("(?i)" if ignore_case else "") + spellings)

    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in compiled.finditer(text):
            if stands_alone(text, *match.span()):
                yield match.span()

    return find


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no letter, digit or underscore touches this stretch."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    return not any(c.isalnum() or c == "_" for c in (before, after) if c)


def is_apart(text: str, start: int, end: int) -> bool:
    """As ``stands_alone``, for what is written in ASCII: Chinese sets no space around it. A bracket parts as well."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    edges = [before] if text[start].isalnum() else []
    return not any(c.isascii() and (c.isalnum() or c == "_") for c in (*edges, after) if c)


def merged(places: Iterable[Place]) -> list[Place]:
    """The places in order, those that overlap joined to one."""
    joined: list[Place] = []
    for start, end in sorted(places):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def without(places: Iterable[Place], taken: Sequence[Place]) -> Iterator[Place]:
    """The parts of ``places`` that no place of ``taken`` covers; ``taken`` is in order and does not overlap."""
    starts = [start for start, _ in taken]
    for first, end in places:
        start = first
        at = max(0, bisect_right(starts, start) - 1)
        while at < len(taken) and taken[at][0] < end:
            if taken[at][1] > start:
                if taken[at][0] > start:
                    yield start, taken[at][0]
                start = taken[at][1]
            at += 1
        if start < end:
            yield start, end


def hidden(text: str, taken: Sequence[Place]) -> str:
    """The text with other signs in these places, for a search too slow to go over them again."""
    pieces, at = [], 0
    for start, end in taken:
        pieces += [text[at:start], "\x1f" * (end - start)]
        at = end
    return "".join([*pieces, text[at:]])
