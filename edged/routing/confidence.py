"""L0 confidence: a zero-shot score of an answer from its own token probabilities.

The score is a ranking, not a probability, until it is calibrated. Free text: mean log-probability, with the low
quantile and the worst window, since one bad stretch spoils an answer that is fluent on average (Gupta et al. 2024,
arXiv:2404.10136; DeepConf, arXiv:2508.15260).
"""

import math
from collections.abc import Sequence

from edged.core import Token

WINDOW_TOKENS = 8
LOW_QUANTILE = 0.1
CEILING = 0.999
"""No uncalibrated score claims certainty: a ``min_confidence`` of 1 always defers."""

_MEAN_WEIGHT, _QUANTILE_WEIGHT, _WINDOW_WEIGHT = 0.5, 0.25, 0.25


def free_text_score(tokens: Sequence[Token]) -> float | None:
    """Score in [0, 1) of free text; None where there is no evidence (missing is not zero)."""
    logprobs = [token.logprob for token in tokens if math.isfinite(token.logprob)]
    if not logprobs:
        return None
    mean = sum(logprobs) / len(logprobs)
    low = sorted(logprobs)[int(LOW_QUANTILE * (len(logprobs) - 1))]
    blend = _MEAN_WEIGHT * mean + _QUANTILE_WEIGHT * low + _WINDOW_WEIGHT * _worst_window(logprobs)
    return min(math.exp(blend), CEILING)


def _worst_window(logprobs: list[float]) -> float:
    """The lowest mean over any run of WINDOW_TOKENS tokens."""
    size = min(WINDOW_TOKENS, len(logprobs))
    total = worst = sum(logprobs[:size])
    for entering, leaving in zip(logprobs[size:], logprobs, strict=False):
        total += entering - leaving
        worst = min(worst, total)
    return worst / size
