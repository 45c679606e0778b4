"""A local answer on probation as the policy sees it, and what can be proved of it before it ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from edged.core import FinishReason, Token
from edged.routing.confidence import (
    free_text_bound,
    free_text_score,
    is_looping,
    structured_bound,
    structured_score,
)
from edged.routing.latency import EXPECTED_ANSWER_TOKENS

_MEASURED_TOKENS = 8
"""Gaps between fewer tokens are no rate yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A local answer so far. ``elapsed_s`` counts from receipt, ``silence_s`` from the last token.

    ``has_text``: text or a function call. ``structured``: the choices that are JSON or calls, or may become calls.
    ``malformed``: a finished one of them is not what it should be, or none can become it any more. ``settled``: what
    each choice is cannot change any more. ``most_tokens`` bounds each choice, ``asked_tokens`` is what the request
    said; ``decode_s`` is the time since the first token, ``load_s`` a cold load that ``elapsed_s`` leaves out.

    ``judged`` is the confidence of an answer that was chosen among options, not generated, and ``standard`` what it
    must reach in place of the route's threshold; infinite where the model is not to be trusted with it at all.
    """

    elapsed_s: float
    silence_s: float
    choices: tuple[Sequence[Token], ...]
    finishes: tuple[FinishReason | None, ...]
    has_text: bool
    cut_short: bool = False
    structured: frozenset[int] = frozenset()
    malformed: bool = False
    settled: bool = False
    most_tokens: int | None = None
    asked_tokens: int | None = None
    decode_s: float = 0.0
    load_s: float = 0.0
    judged: float | None = None
    standard: float | None = None

    @property
    def started(self) -> bool:
        return any(self.choices) or self.finished

    @property
    def finished(self) -> bool:
        return all(finish is not None for finish in self.finishes)

    @property
    def held_tokens(self) -> int:
        """Tokens of the shortest choice that is still going on."""
        return min(map(len, self._going()), default=0)

    @property
    def confidence(self) -> float | None:
        """The least confident choice decides."""
        return self.confidence_of(None)

    def confidence_of(self, first_tokens: int | None) -> float | None:
        """By the first so many tokens of each choice: the same, however they came together."""
        if self.judged is not None:
            return self.judged
        scores = [self._score(choice, tokens[:first_tokens]) for choice, tokens in enumerate(self.choices)]
        return min((score for score in scores if score is not None), default=None)

    def best_confidence(self, judged_tokens: int | None) -> float:
        """No continuation scores higher; ``judged_tokens`` of each choice will count, None: all of them.

        1 where nothing can be said yet.
        """
        if not self.settled or (judged_tokens is None and self.most_tokens is None):
            return 1.0
        most = min(limit for limit in (judged_tokens, self.most_tokens) if limit is not None)
        pairs = enumerate(zip(self.choices, self.finishes, strict=True))
        return min(self._bound(choice, tokens, len(tokens) if finish else most) for choice, (tokens, finish) in pairs)

    @property
    def looping(self) -> bool:
        """A choice of free text says the same over and over."""
        going = enumerate(zip(self.choices, self.finishes, strict=True))
        return any(
            finish is None and choice not in self.structured and is_looping(tokens)
            for choice, (tokens, finish) in going
        )

    @property
    def expected_total_s(self) -> float | None:
        """When the whole answer would be there at its own pace so far, counted from receipt; None until it has one."""
        said = max(map(len, self._going()), default=0)
        if said < _MEASURED_TOKENS or self.decode_s <= 0:
            return None
        return self.elapsed_s + self.load_s + self.left_tokens * self.decode_s / (said - 1)

    @property
    def left_tokens(self) -> int:
        """Of the longest choice going on, to the length asked for or the usual one."""
        said = max(map(len, self._going()), default=0)
        return max(0, (self.asked_tokens or EXPECTED_ANSWER_TOKENS) - said)

    def _going(self) -> list[Sequence[Token]]:
        return [tokens for tokens, finish in zip(self.choices, self.finishes, strict=True) if finish is None]

    def _score(self, choice: int, tokens: Sequence[Token]) -> float | None:
        return structured_score(tokens) if choice in self.structured else free_text_score(tokens)

    def _bound(self, choice: int, tokens: Sequence[Token], most: int) -> float:
        if choice in self.structured:
            return structured_bound(tokens, most)
        return free_text_bound(tokens[:most], most)
