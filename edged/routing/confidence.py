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
    blend = _MEAN_WEIGHT * mean + _QUANTILE_WEIGHT * low + _WINDOW_WEIGHT * _worst_window(logprobs)
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


def _worst_window(logprobs: list[float]) -> float:
    """The lowest mean over any run of WINDOW_TOKENS tokens."""
    size = min(WINDOW_TOKENS, len(logprobs))
    total = worst = sum(logprobs[:size])
    for entering, leaving in zip(logprobs[size:], logprobs, strict=False):
        total += entering - leaving
        worst = min(worst, total)
    return worst / size
