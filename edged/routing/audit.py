"""Which kept answers are checked against the cloud, and whether two answers agree: pure."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

AGREE_F1 = 0.5
"""Two texts agree from this F1 of their words on: a rough measure of the same words, not of the same meaning."""

_DIGEST_BYTES = 8
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})


class Measure(StrEnum):
    """How two answers were compared."""

    JSON = "json"
    CALLS = "calls"
    EXACT = "exact"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Agreement:
    """``score`` is 0 or 1 for closed forms, the F1 of the words for text."""

    measure: Measure
    agreed: bool
    score: float


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its text and its calls as (name, JSON arguments)."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


def is_sampled(request_id: str, *, share: float, seed: int = 0) -> bool:
    """Whether a request belongs to the audited share: the same id and seed always give the same answer."""
    digest = hashlib.blake2b(f"{seed}:{request_id}".encode(), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest, "big") < share * 2.0 ** (8 * _DIGEST_BYTES)


def compare(local: Said, cloud: Said, *, is_json: bool, is_exact: bool) -> Agreement:
    """Compare two answers to one request; ``is_exact`` for answers out of a closed set (a pattern, a grammar).

    1. Calls, of either side: the same functions with equal arguments, in any order.
    2. JSON: equal values; the order of members and the spelling of numbers do not matter.
    3. A closed set: the same text without surrounding space.
    4. Text: the F1 of the normalised words (case, punctuation and articles aside), agreed from ``AGREE_F1`` on.
    """
    if local.calls or cloud.calls:  # 1
        return _closed(Measure.CALLS, _calls(local.calls), _calls(cloud.calls))
    if is_json:  # 2
        return _closed(Measure.JSON, canonical(local.text), canonical(cloud.text))
    if is_exact:  # 3
        return _closed(Measure.EXACT, local.text.strip(), cloud.text.strip())
    score = words_f1(local.text, cloud.text)  # 4
    return Agreement(Measure.WORDS, score >= AGREE_F1, score)


def words_f1(one: str, other: str) -> float:
    """The F1 of two texts' words as bags, after normalisation; two texts without words agree."""
    left, right = _words(one), _words(other)
    if not left or not right:
        return float(left == right)
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right))


def canonical(text: str) -> str | None:
    """JSON in one spelling; None where it is no JSON, which is equal to nothing."""
    try:
        return json.dumps(_plain(json.loads(text)), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _closed(measure: Measure, left: object, right: object) -> Agreement:
    agreed = left is not None and left == right
    return Agreement(measure, agreed, float(agreed))


def _calls(calls: Sequence[tuple[str, str]]) -> list[tuple[str, str]] | None:
    spelled = [(name, canonical(arguments or "{}")) for name, arguments in calls]
    known = [(name, arguments) for name, arguments in spelled if arguments is not None]
    return sorted(known) if len(known) == len(spelled) else None


def _plain(value: Any) -> Any:
    """1.0 and 1 are one number in JSON; true and 1 are not."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]
