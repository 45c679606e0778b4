"""L0 confidence: a zero-shot score of an answer from its own token probabilities.

The score is a ranking, not a probability, until it is calibrated. Free text: mean log-probability, with the low
quantile and the worst window, since one bad stretch spoils an answer that is fluent on average (Gupta et al. 2024,
arXiv:2404.10136; DeepConf, arXiv:2508.15260). JSON and function calls: mean and minimum over the tokens that carry
values, since the form was not the model's to choose (arXiv:2604.22985).
"""

import math
from collections.abc import Sequence

from edged.chat.values import value_places
from edged.core import Token

WINDOW_TOKENS = 8
LOW_QUANTILE = 0.1
CEILING = 0.999
"""No uncalibrated score claims certainty: a ``min_confidence`` of 1 always defers."""

_FLOOR = -30.0
"""A token of probability zero is very bad evidence, not missing evidence, and must not swamp every other token."""

_STRETCH = 0.5
"""Spreads the blend over the scale; it changes no ranking. Without it the starter model at its default sampling puts 33
of 35 mixed prompts below 0.5, with it 22 (docs/reasons.md, low_confidence)."""

_MEAN_WEIGHT, _QUANTILE_WEIGHT, _WINDOW_WEIGHT = 0.5, 0.25, 0.25
_VALUE_MEAN_WEIGHT, _VALUE_MIN_WEIGHT = 0.5, 0.5


def free_text_score(tokens: Sequence[Token]) -> float | None:
    """Score in [0, 1) of free text; None where there is no evidence (missing is not zero)."""
    logprobs = [max(token.logprob, _FLOOR) for token in tokens if not math.isnan(token.logprob)]
    if not logprobs:
        return None
    mean = sum(logprobs) / len(logprobs)
    low = sorted(logprobs)[int(LOW_QUANTILE * (len(logprobs) - 1))]
    blend = _MEAN_WEIGHT * mean + _QUANTILE_WEIGHT * low + _WINDOW_WEIGHT * worst_window(logprobs)
    return min(math.exp(_STRETCH * blend), CEILING)


def structured_score(tokens: Sequence[Token]) -> float | None:
    """Score in [0, 1) of JSON or function calls by their values; by every token where none carries one.

    The log-probabilities are those of the unmasked distribution: a value the model was pushed to scores low.
    """
    places = set(value_places([token.piece for token in tokens]))
    values = [token for place, token in enumerate(tokens) if place in places] or tokens
    logprobs = [max(token.logprob, _FLOOR) for token in values if not math.isnan(token.logprob)]
    if not logprobs:
        return None
    mean = sum(logprobs) / len(logprobs)
    blend = _VALUE_MEAN_WEIGHT * mean + _VALUE_MIN_WEIGHT * min(logprobs)
    return min(math.exp(_STRETCH * blend), CEILING)


def free_text_bound(tokens: Sequence[Token], most_tokens: int) -> float:
    """The best score that free text beginning with ``tokens`` can still get, with at most ``most_tokens`` in all.

    The best case is that every further token is certain. Each of the three parts then only grows with the length: the
    mean; the low quantile, whose rank moves up among the same values; the worst window, which stays.
    """
    logprobs = [max(token.logprob, _FLOOR) for token in tokens if not math.isnan(token.logprob)]
    if not logprobs:
        return CEILING
    size = max(most_tokens, len(logprobs))
    rank = int(LOW_QUANTILE * (size - 1))
    low = sorted(logprobs)[rank] if rank < len(logprobs) else 0.0
    window = [*logprobs, *[0.0] * min(size - len(logprobs), WINDOW_TOKENS)]
    mean = sum(logprobs) / size
    blend = _MEAN_WEIGHT * mean + _QUANTILE_WEIGHT * min(low, 0.0) + _WINDOW_WEIGHT * worst_window(window)
    return min(math.exp(_STRETCH * blend), CEILING)


def structured_bound(tokens: Sequence[Token], most_tokens: int) -> float:
    """As ``free_text_bound``, of JSON: whether a byte is part of a value does not depend on what follows it."""
    places = set(value_places([token.piece for token in tokens]))
    values = [token for place, token in enumerate(tokens) if place in places]
    logprobs = [max(token.logprob, _FLOOR) for token in values if not math.isnan(token.logprob)]
    if not logprobs:
        return CEILING
    most_values = max(most_tokens - (len(tokens) - len(values)), len(logprobs))
    blend = _VALUE_MEAN_WEIGHT * sum(logprobs) / most_values + _VALUE_MIN_WEIGHT * min(logprobs)
    return min(math.exp(_STRETCH * blend), CEILING)


LOOP_TOKENS = 64
LOOP_ROUNDS = 4
_LONGEST_PERIOD_TOKENS = 32


def is_looping(tokens: Sequence[Token]) -> bool:
    """Whether the text ends in the same run of tokens over and over: ``LOOP_ROUNDS`` times, ``LOOP_TOKENS`` in all."""
    pieces = [token.piece for token in tokens[-(LOOP_ROUNDS * _LONGEST_PERIOD_TOKENS) :]]
    for period in range(1, _LONGEST_PERIOD_TOKENS + 1):
        length = max(LOOP_TOKENS, LOOP_ROUNDS * period)
        if length <= len(pieces) and pieces[-length + period :] == pieces[-length:-period]:
            return True
    return False


def worst_window(logprobs: list[float]) -> float:
    """The lowest mean over any run of WINDOW_TOKENS tokens."""
    size = min(WINDOW_TOKENS, len(logprobs))
    total = worst = sum(logprobs[:size])
    for entering, leaving in zip(logprobs[size:], logprobs, strict=False):
        total += entering - leaving
        worst = min(worst, total)
    return worst / size
