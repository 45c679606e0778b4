"""What a generated answer looked like to the model that generated it: a fixed row of numbers, for a head to judge by.

Every number comes from the distributions before temperature, penalties or masks (``core.Token``). What is not known of
an answer is said by a flag of its own, since no value may stand for "unknown": a head sees both and gives the gap its
own weight. Rows of different versions are never mixed: heads are kept apart by ``VERSION``.

Sources: quantiles and the worst window, Gupta et al. 2024 (arXiv:2404.10136) and DeepConf (arXiv:2508.15260); value
tokens of structured answers, arXiv:2604.22985.
"""

import math
from collections.abc import Iterable, Sequence

from edged.chat.values import value_places
from edged.core import FinishReason, Token
from edged.routing.confidence import WINDOW_TOKENS, worst_window

VERSION = 1

NAMES = (
    "tokens",
    "log_tokens",
    "stopped",
    "cut",
    "logprob_mean",
    "logprob_sum",
    "logprob_min",
    "logprob_q10",
    "logprob_q25",
    "logprob_q50",
    "first_logprob",
    "first_margin",
    "first_entropy",
    "margin_min",
    "margin_mean",
    "entropy_max",
    "entropy_q90",
    "worst_window",
    "last_window",
    "unlikely_share",
    "value_mean",
    "value_sum",
    "value_min",
    "value_q10",
    "value_q25",
    "value_q50",
    "allowed_min",
    "end_margin",
    "repeated_share",
    "form_ok",
    "no_logprobs",
    "no_margins",
    "no_entropies",
    "no_values",
    "never_constrained",
    "no_end_margin",
)
"""What stands where in a row. The last six are 1 where what they are about is missing; it is then 0 in its place."""

SAME_FOR_EVERY_PREFIX = ("first_logprob", "first_margin", "first_entropy")
NEVER_RISE = ("logprob_sum", "logprob_min", "margin_min", "allowed_min")
NEVER_FALL = ("tokens", "log_tokens", "entropy_max")
"""How an answer's numbers move as it grows: those of its first token stay, extremes and sums go one way."""

FLOOR = -30.0
"""A log-probability below it is as good as impossible."""
CEILING = 30.0
"""Of margins and entropies, in nats."""
REPEATED_TOKENS = 4

_UNLIKELY = math.log(0.5)


def features(
    tokens: Sequence[Token],
    *,
    finish: FinishReason | None,
    is_structured: bool,
    form_ok: bool,
    end_margin: float | None = None,
) -> tuple[float, ...]:
    """One row of ``NAMES``, finite whatever the tokens hold.

    ``is_structured``: JSON or function calls, so that some tokens carry values and the others form. ``form_ok``: the
    answer has text or a call, and is the JSON that was asked for. ``end_margin``: how far the end of the text was ahead
    of the next best token, in nats, where that is known.
    """
    logprobs = [logprob for token in tokens if (logprob := _logprob(token)) is not None]
    margins, entropies = _known(t.margin for t in tokens), _known(t.entropy for t in tokens)
    allowed = _known(t.allowed for t in tokens)
    values = _values(tokens) if is_structured else []
    end = _known([end_margin])
    count = len(tokens)
    row = [
        float(count),
        math.log1p(count),
        float(finish in (FinishReason.STOP, FinishReason.TOOL_CALLS)),
        float(finish is FinishReason.LENGTH),
        *_spread(logprobs),
        _mean([logprob for token in tokens[:1] if (logprob := _logprob(token)) is not None]),
        _mean(_known(token.margin for token in tokens[:1])),
        _mean(_known(token.entropy for token in tokens[:1])),
        min(margins, default=0.0),
        _mean(margins),
        max(entropies, default=0.0),
        quantile(entropies, 0.9),
        worst_window(logprobs) if logprobs else 0.0,
        _mean(logprobs[-WINDOW_TOKENS:]),
        _mean([float(logprob < _UNLIKELY) for logprob in logprobs]),
        *_spread(values),
        min(allowed, default=0.0),
        _mean(end),
        repeated_share(tokens),
        float(form_ok),
        *(float(not known) for known in (logprobs, margins, entropies, values, allowed, end)),
    ]
    return tuple(row)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share lies at or below, one of ``values``; 0 of none."""
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def repeated_share(tokens: Sequence[Token]) -> float:
    """The share of runs of four tokens that stood in the answer before."""
    pieces = [token.piece for token in tokens]
    runs = list(zip(*(pieces[start:] for start in range(REPEATED_TOKENS)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _spread(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Mean, sum, least, and three quantiles."""
    quantiles = (quantile(logprobs, share) for share in (0.1, 0.25, 0.5))
    return (_mean(logprobs), math.fsum(logprobs), min(logprobs, default=0.0), *quantiles)


def _values(tokens: Sequence[Token]) -> list[float]:
    places = value_places([token.piece for token in tokens])
    return [logprob for place in places if (logprob := _logprob(tokens[place])) is not None]


def _logprob(token: Token) -> float | None:
    return None if math.isnan(token.logprob) else min(0.0, max(FLOOR, token.logprob))


def _known(values: Iterable[float | None]) -> list[float]:
    """Those that are numbers, within 0 and ``CEILING``."""
    return [min(CEILING, max(0.0, value)) for value in values if value is not None and not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
